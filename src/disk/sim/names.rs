//! The names on a simulated disk: a tree of directories, and which of its changes a power failure undoes. A change to a
//! directory is sure to be on the device once that directory was synced.

use super::{content::Content, random::Random};
use std::{
    collections::BTreeMap,
    io,
    path::{Component, Path},
};

// Lookups return errors: the holder of a file on a disk that is off may ask for something that no longer exists.

/// The number of the root.
const ROOT: usize = 0;

#[derive(Debug, Clone)]
enum Node {
    File(Content),
    Dir(Dir),
}

#[derive(Debug, Default, Clone)]
struct Dir {
    now: BTreeMap<String, usize>,
    /// What the device has.
    durable: BTreeMap<String, usize>,
    /// The changes since then, in order.
    changes: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Put(String, usize),
    Remove(String),
    /// Takes effect as a whole or not at all.
    Rename(String, String, usize),
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Put(name, node) => drop(names.insert(name.clone(), *node)),
            Self::Remove(name) => drop(names.remove(name)),
            Self::Rename(from, to, node) => {
                if names.get(from) == Some(node) {
                    names.remove(from);
                }
                names.insert(to.clone(), *node);
            }
        }
    }
}

impl Dir {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.changes.push(change);
    }
}

/// All names on the disk, as they are now and as they were synced. Files and directories have numbers, which they keep
/// under any name.
#[derive(Debug, Clone)]
pub(super) struct Names(Vec<Node>);

/// Where a name is: the number of its directory, and the name in it.
pub(super) type DirEntry = (usize, String);

impl Default for Names {
    fn default() -> Self {
        Self(vec![Node::Dir(Dir::default())])
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// The names on the path from the root.
fn parts(path: &Path) -> Vec<&str> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.extend(name.to_str()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts
}

impl Names {
    fn dir(&self, number: usize) -> io::Result<&Dir> {
        match self.0.get(number).ok_or_else(not_found)? {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn dir_mut(&mut self, number: usize) -> io::Result<&mut Dir> {
        match self.0.get_mut(number).ok_or_else(not_found)? {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    pub(super) fn file(&self, number: usize) -> io::Result<&Content> {
        match self.0.get(number).ok_or_else(not_found)? {
            Node::File(content) => Ok(content),
            Node::Dir(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    pub(super) fn file_mut(&mut self, number: usize) -> io::Result<&mut Content> {
        match self.0.get_mut(number).ok_or_else(not_found)? {
            Node::File(content) => Ok(content),
            Node::Dir(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// The number of the file or directory at `path`.
    pub(super) fn find(&self, path: &Path) -> io::Result<usize> {
        let mut at = ROOT;
        for part in parts(path) {
            at = *self.dir(at)?.now.get(part).ok_or_else(not_found)?;
        }
        Ok(at)
    }

    /// The directory that `path` is in, which must exist, and the name in it.
    pub(super) fn place(&self, path: &Path) -> io::Result<DirEntry> {
        let mut parts = parts(path);
        let name = parts.pop().ok_or_else(not_found)?;
        let mut at = ROOT;
        for part in parts {
            at = *self.dir(at)?.now.get(part).ok_or_else(not_found)?;
        }
        self.dir(at)?;
        Ok((at, name.to_owned()))
    }

    /// The first directory on the path that is missing.
    pub(super) fn missing(&self, path: &Path) -> io::Result<Option<DirEntry>> {
        let mut at = ROOT;
        for part in parts(path) {
            match self.dir(at)?.now.get(part) {
                Some(&next) => at = next,
                None => return Ok(Some((at, part.to_owned()))),
            }
        }
        self.dir(at).map(|_| None)
    }

    pub(super) fn list(&self, dir: usize) -> io::Result<Vec<String>> {
        Ok(self.dir(dir)?.now.keys().cloned().collect())
    }

    pub(super) fn dirs(&self, dir: usize) -> io::Result<Vec<String>> {
        let inside = self.dir(dir)?.now.iter();
        let dirs = inside.filter(|(_, node)| matches!(self.0[**node], Node::Dir(_)));
        Ok(dirs.map(|(name, _)| name.clone()).collect())
    }

    pub(super) fn make_dir(&mut self, (dir, name): DirEntry) -> io::Result<()> {
        let number = self.0.len();
        self.0.push(Node::Dir(Dir::default()));
        self.dir_mut(dir)?.change(Change::Put(name, number));
        Ok(())
    }

    pub(super) fn make_file(&mut self, (dir, name): DirEntry, content: Content) -> io::Result<usize> {
        let number = self.0.len();
        self.0.push(Node::File(content));
        self.dir_mut(dir)?.change(Change::Put(name, number));
        Ok(number)
    }

    /// Renames within one directory.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let number = self.find(from)?;
        let ((dir, from), (there, to)) = (self.place(from)?, self.place(to)?);
        assert_eq!(dir, there, "nothing of ours is moved to another directory");
        if let Some(&old) = self.dir(dir)?.now.get(&to)
            && let Node::Dir(old) = &self.0[old]
            && !old.now.is_empty()
        {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.dir_mut(dir)?.change(Change::Rename(from, to, number));
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        self.file(self.find(path)?)?;
        let (dir, name) = self.place(path)?;
        self.dir_mut(dir)?.change(Change::Remove(name));
        Ok(())
    }

    /// Removes an empty directory.
    pub(super) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        if !self.dir(self.find(path)?)?.now.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let (dir, name) = self.place(path)?;
        self.dir_mut(dir)?.change(Change::Remove(name));
        Ok(())
    }

    pub(super) fn sync(&mut self, dir: usize) -> io::Result<()> {
        let dir = self.dir_mut(dir)?;
        dir.durable = dir.now.clone();
        dir.changes.clear();
        Ok(())
    }

    /// The power fails.
    pub(super) fn lose(&mut self, random: &mut Random) {
        for node in &mut self.0 {
            match node {
                Node::File(content) => content.lose(random),
                Node::Dir(dir) => {
                    // In order up to some moment, or each change by itself: file systems do the former and promise
                    // neither.
                    let until =
                        if random.one_in(3) { Some(random.below(dir.changes.len() + 1)) } else { None };
                    for (n, change) in dir.changes.drain(..).enumerate() {
                        let kept = random.one_in(2);
                        if until.map_or(kept, |until| n < until) {
                            change.apply(&mut dir.durable);
                        }
                    }
                    dir.now = dir.durable.clone();
                }
            }
        }
    }

    /// A process was killed: everything in the page cache is kept.
    pub(super) fn settle(&mut self, random: &mut Random) {
        for node in &mut self.0 {
            if let Node::File(content) = node {
                content.forget(random);
            }
        }
    }

    /// Puts a copy of a directory, or the directory itself, under another name, on the device too.
    #[cfg(feature = "store")]
    pub(super) fn graft(&mut self, from: &Path, to: &Path, copy: bool) -> io::Result<()> {
        let number = self.find(from)?;
        let ((dir, from), (there, to)) = (self.place(from)?, self.place(to)?);
        let grafted = if copy { self.copy(number) } else { number };
        if !copy {
            self.dir_mut(dir)?.now.remove(&from);
        }
        self.dir_mut(there)?.now.insert(to, grafted);
        self.sync(dir)?;
        self.sync(there)
    }

    #[cfg(feature = "store")]
    fn copy(&mut self, number: usize) -> usize {
        let mut node = self.0[number].clone();
        match &mut node {
            Node::File(content) => content.change(|_| ()),
            Node::Dir(dir) => {
                let inside = dir.now.iter().map(|(name, &node)| (name.clone(), self.copy(node))).collect();
                *dir = Dir { now: inside, ..Dir::default() };
                dir.durable = dir.now.clone();
            }
        }
        self.0.push(node);
        self.0.len() - 1
    }

    /// All files with their paths.
    pub(super) fn files(&self) -> Vec<(std::path::PathBuf, usize)> {
        let (mut files, mut dirs) = (Vec::new(), vec![(std::path::PathBuf::from("/"), ROOT)]);
        while let Some((path, number)) = dirs.pop() {
            let Node::Dir(dir) = &self.0[number] else { continue };
            for (name, &inside) in &dir.now {
                let path = path.join(name);
                match &self.0[inside] {
                    Node::Dir(_) => dirs.push((path, inside)),
                    Node::File(_) => files.push((path, inside)),
                }
            }
        }
        files
    }

    /// Drops everything that no name leads to any more: open files of a process that has ended.
    pub(super) fn remove_orphans(&mut self) {
        let (mut reached, mut next) = (std::collections::BTreeSet::from([ROOT]), vec![ROOT]);
        while let Some(at) = next.pop() {
            let Node::Dir(dir) = &self.0[at] else { continue };
            let changed = dir.changes.iter().filter_map(|change| match change {
                Change::Put(_, node) | Change::Rename(_, _, node) => Some(node),
                Change::Remove(_) => None,
            });
            for &number in dir.now.values().chain(dir.durable.values()).chain(changed) {
                if reached.insert(number) {
                    next.push(number);
                }
            }
        }
        for (number, node) in self.0.iter_mut().enumerate() {
            if !reached.contains(&number) {
                *node = Node::File(Content::default());
            }
        }
    }
}
