//! Epochs that begin. The file with the new epochs is written first; only then does the table have them, from which
//! batches and questions are answered. So nothing has changed if it cannot be written, and what is answered is durable.
//!
//! Callers that wait share a write: each adds itself to a list, and whoever gets the file next begins the epochs of all
//! that are in the list by then. The others find their answers when they get the file.

use super::{
    super::{
        Error, Log,
        requests::{Answered, Request, Requests},
        room::WaitFor,
    },
    BegunEpoch, check_id,
    file::Saved,
};
#[cfg(feature = "server")]
use crate::log::requests::LastWrite;

/// The producer in its epoch, and the offset below which everything must become durable before it is told.
type Begun = (BegunEpoch, u64);

/// Which epoch is to begin.
#[derive(Clone)]
pub(super) struct EpochRequest {
    /// The producer's id.
    id: String,
    /// The epoch that the producer may be in at the most.
    after: Option<u32>,
}

/// The epochs that are to begin.
pub(super) type Asked = Requests<EpochRequest, Begun>;

/// A requested epoch. Dropping this withdraws the request, unless the epoch is about to begin.
pub(crate) struct AskedEpoch(Request<EpochRequest, Begun>);

impl Log {
    /// Queues a request for a producer's next epoch. It is served by [`begin_asked_epoch`](Self::begin_asked_epoch),
    /// called for this request or any other, and refused if the producer is in a later epoch than `after` by then. Does
    /// not touch the disk.
    pub(crate) fn ask_for_epoch(&self, id: &str, after: Option<u32>) -> Result<AskedEpoch, Error> {
        check_id(id)?;
        self.writable()?;
        Ok(AskedEpoch(self.shared.producers.asked.add(EpochRequest { id: id.to_owned(), after })))
    }

    /// The last write of the file, if this epoch has yet to cause one: `None` if it has begun together with another
    /// one. If the file is being written, waits for that.
    #[cfg(feature = "server")]
    pub(crate) fn last_write_of_producers(&self, asked: &AskedEpoch) -> Option<LastWrite> {
        let file = self.shared.producers.file();
        let ago = self.shared.env.machine.elapsed().saturating_sub(file.tried);
        (!asked.0.is_answered()).then_some(LastWrite { bytes: file.bytes, ago })
    }

    /// Begins an epoch that was asked for, if that has not been done: see [`begin_epoch`](Self::begin_epoch).
    pub(crate) fn begin_asked_epoch(&self, asked: &AskedEpoch) -> Result<BegunEpoch, Error> {
        let answer = {
            let mut file = self.shared.producers.file();
            asked.0.answer(|all| self.begin_epochs(&mut file, all))
        };
        if let Err(Error::ProducerOutOfOrder { .. }) = answer {
            self.wait_below(self.next_offset())?; // a batch may have begun the later one, and is not to be taken back
        }
        let (begun, next) = answer?;
        // Batches of the epoch before that came at the last moment.
        self.wait_below(next)?;
        Ok(begun)
    }

    /// Begins all epochs that are asked for.
    fn begin_epochs(&self, file: &mut Saved, asked: &[(EpochRequest, Answered<Begun>)]) -> Result<(), Error> {
        self.writable()?;
        self.learn(file)?;
        let now = self.shared.env.machine.now();
        let Some((up_to, mut next)) = self.copy_of_table() else { return Err(Error::Closed) }; // once built, it stays
        let changes = next.changes;
        let mut begun = Vec::with_capacity(asked.len());
        for (EpochRequest { id, after }, answer) in asked {
            match next.next_epoch(id, *after, now) {
                Ok(epoch) => begun.push((id, answer, epoch)),
                Err(error) => {
                    let _ = answer.set(Err(error)); // it has none yet
                }
            }
        }
        if begun.is_empty() {
            return Ok(());
        }
        let states: Vec<_> = begun.iter().map(|(id, ..)| next.producers.get(*id).cloned()).collect();
        self.write_producers(file, up_to, next.producers, WaitFor::Anything)?;
        // What came while it was written, before the table is changed: so that there is little left to wait for after
        // that, when an error comes too late.
        if let Err(error) = self.wait_below(self.next_offset()) {
            file.uncertain = true;
            return Err(error);
        }
        let mut table = self.shared.producers.table();
        let Some(table) = table.as_mut() else { return Err(Error::Closed) };
        let nothing_came = table.changes == changes;
        let all: Vec<_> = begun
            .iter()
            .zip(states)
            .map(|(&(id, _, epoch), state)| table.begin(id, epoch, now, state))
            .collect();
        file.changes = if nothing_came { table.changes } else { changes };
        let next = self.next_offset();
        for ((_, answer, _), begun) in begun.into_iter().zip(all) {
            let _ = answer.set(Ok((begun, next))); // it has none yet
        }
        Ok(())
    }

    /// Waits until everything below an offset is durable; an error if there is no room for it.
    fn wait_below(&self, next: u64) -> Result<(), Error> {
        next.checked_sub(1).map_or(Ok(()), |last| self.shared.wait_durable_unless_full(last))
    }
}
