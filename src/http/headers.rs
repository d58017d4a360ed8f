//! The headers of requests and answers that `hyper` has no name for. Those of an append's producer are in
//! `producers`, which takes them apart.

use crate::wire;
use hyper::header::HeaderName;

/// See [`wire::LOG_ID`].
pub(super) const LOG_ID: HeaderName = HeaderName::from_static(wire::LOG_ID);
/// See [`wire::NEXT_OFFSET`].
pub(super) const NEXT_OFFSET: HeaderName = HeaderName::from_static(wire::NEXT_OFFSET);
/// How many of the records are marked as lost, if any: formats that consist of values have no mark for it.
pub(super) const LOST_RECORDS: HeaderName = HeaderName::from_static("millstream-lost-records");
/// When the record was appended, in milliseconds since 1970.
pub(super) const TIME: HeaderName = HeaderName::from_static("millstream-time");

/// The id of a request, chosen by the client or by us; in the answer and in the server's log.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Whether nginx may hold an answer back to collect more of it.
pub(super) const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

// What a browser says about the page that a request comes from.
pub(super) const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
pub(super) const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
pub(super) const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
