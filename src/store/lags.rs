//! How far behind the consumers of a store's logs are.

use super::{Store, read_lock};
use std::cmp::Reverse;

impl Store {
    /// The `limit` cursors of open logs that are farthest behind: the name of the log, that of the cursor, and how many
    /// records its consumer still has to read.
    pub(crate) fn cursor_lags(&self, limit: usize) -> Vec<(String, String, u64)> {
        let mut all = Vec::new();
        let open: Vec<_> = {
            let entries = read_lock(&self.inner.entries);
            entries.values().filter_map(|entry| entry.open.load_full()).collect()
        };
        let mut least = 0; // cursors that are less far behind than this are not among them
        for log in open {
            log.each_cursor(|name, offset| {
                let lag = log.lag_of(offset);
                if lag >= least {
                    all.push((log.name().to_owned(), name.to_owned(), lag));
                }
                if all.len() > 2 * limit {
                    let (_, (.., lag), _) = all.select_nth_unstable_by_key(limit, |(.., lag)| Reverse(*lag));
                    least = *lag;
                    all.truncate(limit);
                }
            });
        }
        all.sort_unstable_by(|(log, name, lag), (other, another, less)| {
            less.cmp(lag).then_with(|| (log, name).cmp(&(other, another)))
        });
        all.truncate(limit);
        all
    }
}
