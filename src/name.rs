//! The names that logs and cursors can have: in a directory, in an address, in a command line.

/// The longest name of a log or a cursor, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Whether a log or a cursor can have this name: it needs no quoting anywhere, and is neither hidden nor a flag.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
