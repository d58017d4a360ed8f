//! Named positions of consumers, which a log keeps.

use super::{Client, Error, json, nothing, path_of, understood};
use crate::{
    Code,
    api::{CursorInfo, CursorPosition, CursorsInfo},
    name::is_name,
};
use hyper::Method;

/// A named position of a consumer in a log: the offset of the record that it wants next. The log keeps it, and it is gone
/// with the log.
///
/// A consumer sets it after its work, and begins there when it starts again: so it has each record at least once.
#[derive(Debug, Clone)]
pub struct Cursor {
    client: Client,
    log: String,
    name: String,
}

impl Client {
    /// The cursor of this name, which need not exist yet. Sends nothing.
    ///
    /// # Errors
    /// [`Error::BadName`].
    pub fn cursor(&self, log: &str, name: &str) -> Result<Cursor, Error> {
        path_of(log)?;
        if !is_name(name) {
            return Err(Error::BadName { name: name.to_owned() });
        }
        Ok(Cursor { client: self.clone(), log: log.to_owned(), name: name.to_owned() })
    }

    /// All cursors of a log, in the order of their names.
    ///
    /// # Errors
    /// As [`describe`](Self::describe).
    pub async fn cursors(&self, log: &str) -> Result<Vec<CursorInfo>, Error> {
        let answer = self.ask(Method::GET, &format!("{}/cursors", path_of(log)?), "", log).await?;
        Ok(understood::<CursorsInfo>(&answer)?.cursors)
    }
}

impl Cursor {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is, and how far behind; `None` if it was never set, or was removed.
    ///
    /// # Errors
    /// As [`Client::describe`].
    pub async fn get(&self) -> Result<Option<CursorInfo>, Error> {
        match self.client.ask(Method::GET, &self.path("")?, "", &self.log).await {
            Err(error) if is_not_there(&error) => Ok(None),
            answer => understood(&answer?).map(Some),
        }
    }

    /// Sets it to an offset, forward or backward; returns where it is now, and how far behind. Durable on return.
    ///
    /// # Errors
    /// As [`Client::describe`], and [`Error::BeyondEnd`]. After [`Error::Unreachable`] the cursor is where it was, or where
    /// it was to be.
    pub async fn set(&self, offset: u64) -> Result<CursorInfo, Error> {
        self.put("", offset).await
    }

    /// Sets it, as [`set`](Self::set) does, if it is at `expected` now; with `None`, if it does not exist yet.
    ///
    /// # Errors
    /// As [`set`](Self::set), and [`Error::UnexpectedCursor`], which says where it is.
    pub async fn set_if(&self, expected: Option<u64>, offset: u64) -> Result<CursorInfo, Error> {
        let expected = expected.map_or_else(|| "none".to_owned(), |expected| expected.to_string());
        self.put(&format!("?expect={expected}"), offset).await
    }

    /// Removes it; returns whether it existed. Durable on return.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn remove(&self) -> Result<bool, Error> {
        match self.client.ask(Method::DELETE, &self.path("")?, "", &self.log).await {
            Err(error) if is_not_there(&error) => Ok(false),
            answer => nothing(&answer?).map(|()| true),
        }
    }

    async fn put(&self, query: &str, offset: u64) -> Result<CursorInfo, Error> {
        let body = json(&CursorPosition { offset })?;
        let answer = self.client.ask(Method::PUT, &self.path(query)?, body, &self.log).await?;
        understood(&answer)
    }

    fn path(&self, query: &str) -> Result<String, Error> {
        Ok(format!("{}/cursors/{}{query}", path_of(&self.log)?, self.name))
    }
}

fn is_not_there(error: &Error) -> bool {
    matches!(error, Error::Refused { code, .. } if Code::parse(code) == Some(Code::CursorNotFound))
}
