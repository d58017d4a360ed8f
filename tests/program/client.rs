//! The client library against a server that is killed, restarted, and short of what it needs.

use crate::support::Server;
use millstream::client::{Client, Error, LogSettings, Producer, ProducerOptions, StartAt};
use std::{
    io::{BufRead, BufReader, Read, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

fn start() -> (tempfile::TempDir, Server, Client) {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let client = Client::new(&server.address).unwrap();
    (data, server, client)
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

async fn values(client: &Client, log: &str) -> Vec<String> {
    let page = client.read(log, 0, 100_000).await.unwrap();
    page.records.iter().map(|record| String::from_utf8_lossy(&record.value).into_owned()).collect()
}

fn producer(client: &Client, id: &str, change: impl FnOnce(&mut ProducerOptions)) -> Producer {
    let mut options = ProducerOptions::default();
    change(&mut options);
    client.producer_with("clicks", id, options).unwrap()
}

/// The second and the third run were answered as stored, and nothing of them was.
#[test]
fn each_run_of_a_producer_stores_what_it_is_given() {
    let (_data, _server, client) = start();
    run(async {
        let mut expected = Vec::new();
        for n in 0..3 {
            let producer = client.producer("clicks", "importer-1").unwrap();
            for part in ["a", "b"] {
                let value = format!("{part}{n}");
                producer.push(value.as_bytes()).await.unwrap();
                expected.push(value);
            }
            let stored = producer.close().await.unwrap();
            assert_eq!(
                (stored.records, stored.first_offset, stored.last_offset),
                (2, Some(2 * n), Some(2 * n + 1))
            );
        }
        assert_eq!(values(&client, "clicks").await, expected);
    });
}

/// The batch of the second one was dropped, as a repeat.
#[test]
fn of_two_producers_with_one_id_the_later_continues_and_the_earlier_gets_an_error() {
    let (_data, _server, client) = start();
    run(async {
        let first = client.producer("clicks", "p").unwrap();
        first.push(b"1").await.unwrap();
        first.flush().await.unwrap();
        let second = client.producer("clicks", "p").unwrap();
        second.push(b"2").await.unwrap();
        second.flush().await.unwrap();
        first.push(b"3").await.unwrap();
        let refused = first.flush().await.unwrap_err();
        assert!(matches!(refused, Error::TakenOver { .. }), "{refused}");
        assert_eq!(first.push(b"4").await, Err(refused));
        second.push(b"5").await.unwrap();
        second.close().await.unwrap();
        // What was accepted is returned, and the producer may take over again.
        assert_eq!(first.discard(), [&b"3"[..]]);
        first.push(b"6").await.unwrap();
        first.close().await.unwrap();
        assert_eq!(values(&client, "clicks").await, ["1", "2", "5", "6"]);
    });
}

/// It took its id back: what is too large is refused before the epoch is looked at, and a new epoch began by itself, which
/// fenced the other one off.
#[test]
fn a_producer_that_was_fenced_off_does_not_take_over_again_by_itself() {
    let (_data, _server, client) = start();
    run(async {
        let settings: LogSettings = serde_json::from_str(r#"{"record_bytes":1000}"#).unwrap();
        client.create("clicks", &settings).await.unwrap();
        let too_large = vec![b'x'; 2000];
        let other = producer(&client, "p", |_| ());
        let fenced = [producer(&client, "p", |_| ()), producer(&client, "p", |_| ())];
        for (n, producer) in (1..).zip(fenced.iter().chain([&other])) {
            producer.push(n.to_string().as_bytes()).await.unwrap();
            producer.flush().await.unwrap();
        }
        let [divides, discards] = fenced;
        // A batch that is divided.
        let mut tickets = vec![divides.submit(b"divided", false).await.unwrap()];
        tickets.push(divides.submit(&too_large, false).await.unwrap());
        let refused = divides.flush().await.unwrap_err();
        assert!(matches!(refused, Error::TakenOver { .. }), "{refused}");
        assert_eq!(tickets.remove(0).await, Err(refused));
        // One that was discarded for another reason.
        discards.push(&too_large).await.unwrap();
        let refused = discards.flush().await.unwrap_err();
        assert!(matches!(refused, Error::Refused { status: 413, .. }), "{refused}");
        assert_eq!(discards.discard(), [&too_large[..]]);
        discards.push(b"behind").await.unwrap();
        let refused = discards.flush().await.unwrap_err();
        assert!(matches!(refused, Error::TakenOver { .. }), "{refused}");
        other.push(b"4").await.unwrap();
        other.close().await.unwrap();
        assert_eq!(values(&client, "clicks").await, ["1", "2", "3", "4"]);
        // Only when it is told so.
        assert_eq!(discards.discard(), [&b"behind"[..]]);
        discards.push(b"5").await.unwrap();
        discards.close().await.unwrap();
        assert_eq!(values(&client, "clicks").await.last().unwrap(), "5");
    });
}

/// After one refused batch the producer refused everything for good, and the record that was pushed was lost.
#[test]
fn a_refused_batch_is_held_until_it_is_discarded_and_those_behind_it_are_stored() {
    let (_data, _server, client) = start();
    run(async {
        let producer = producer(&client, "p", |options| options.batch_bytes = 10);
        producer.push(b"the first one").await.unwrap();
        let refused = producer.submit(b"{ this is no JSON", true).await.unwrap();
        let behind = producer.submit(b"the one behind it", false).await.unwrap();
        let error = producer.flush().await.unwrap_err();
        assert!(
            matches!(&error, Error::Refused { status: 400, code, .. } if code == "invalid_json"),
            "{error}"
        );
        assert_eq!(refused.await, Err(error.clone()));
        assert_eq!(producer.flush().await, Err(error));
        assert_eq!(producer.discard(), [&b"{ this is no JSON"[..]]);
        assert!(producer.discard().is_empty());
        assert_eq!(behind.await, Ok(1));
        assert_eq!(producer.close().await.unwrap().records, 2);
        assert_eq!(values(&client, "clicks").await, ["the first one", "the one behind it"]);
    });
}

/// Line ends made two records of one, and were cut off at its end.
#[test]
fn any_bytes_are_one_record_each() {
    let (_data, _server, client) = start();
    run(async {
        let producer = client.producer("clicks", "p").unwrap();
        let all: [&[u8]; 6] = [b"a\nb", b"ab\r", b"", b"\n", &[0, 255, 128], b"{\"n\": 1}"];
        for value in all {
            producer.push(value).await.unwrap();
        }
        producer.push_json(b"{\"n\": 2}").await.unwrap();
        assert_eq!(producer.close().await.unwrap().records, 7);
        let records = client.read("clicks", 0, 10).await.unwrap().records;
        assert_eq!(records[..6].iter().map(|record| &record.value[..]).collect::<Vec<_>>(), all);
        assert_eq!(
            records.iter().map(|record| record.json).collect::<Vec<_>>(),
            [[false; 6].as_slice(), &[true]].concat()
        );
    });
}

/// With several batches on the way, a server that is killed again and again stores each record once and in order.
#[test]
fn records_are_stored_once_and_in_order_over_kills_of_the_server() {
    let (data, mut server, client) = start();
    run(async {
        let address = server.address.clone();
        let producer = producer(&client, "p", |options| {
            (options.batch_bytes, options.linger) = (200, Duration::from_millis(1));
        });
        let mut tickets = Vec::new();
        for round in 0..3 {
            for n in 0..2000 {
                let value = format!("{}", round * 2000 + n);
                tickets.push(producer.submit(value.as_bytes(), false).await.unwrap());
                if n == 700 {
                    server.kill();
                    server = Server::start(data.path(), &["--create-logs", "--listen", &address]);
                }
            }
        }
        producer.flush().await.unwrap();
        for (n, ticket) in (0..).zip(tickets) {
            assert_eq!(ticket.await, Ok(n));
        }
        let expected: Vec<_> = (0..6000).map(|n| n.to_string()).collect();
        assert_eq!(values(&client, "clicks").await, expected);
    });
}

#[test]
fn a_log_that_is_created_again_gets_what_is_sent_after_that() {
    let (_data, _server, client) = start();
    run(async {
        let producer = client.producer("clicks", "p").unwrap();
        let first = producer.begin_epoch().await.unwrap();
        producer.push(b"old").await.unwrap();
        producer.flush().await.unwrap();
        client.delete("clicks").await.unwrap();
        let info = client.create("clicks", &LogSettings::default()).await.unwrap();
        assert_ne!(info.id, first.log_id);
        producer.push(b"new").await.unwrap();
        producer.flush().await.unwrap();
        let again = producer.begin_epoch().await.unwrap();
        assert!(again.log_id == info.id && again.epoch >= first.epoch, "{again:?} after {first:?}");
        assert_eq!(values(&client, "clicks").await, ["new"]);
    });
}

#[test]
fn errors_name_what_is_wrong() {
    let (_data, server, client) = start();
    run(async {
        for name in ["once?offset=5", "a/b", "bad name", "..", "", "-x", &"x".repeat(129)] {
            let bad = Error::BadName { name: name.to_owned() };
            assert_eq!(client.describe(name).await, Err(bad.clone()));
            assert_eq!(client.create(name, &LogSettings::default()).await, Err(bad.clone()));
            assert_eq!(client.delete(name).await, Err(bad.clone()));
            assert_eq!(client.producer(name, "p").err(), Some(bad));
        }
        let none = Error::NoSuchLog { log: "none".to_owned() };
        assert_eq!(client.describe("none").await, Err(none.clone()));
        assert_eq!(client.read("none", 0, 1).await, Err(none));
        assert!(matches!(Client::new("ftp://x").err(), Some(Error::BadUrl { .. })));
        drop(server);
        let producer = producer(&client, "p", |options| options.patience = Duration::from_millis(50));
        let trouble = producer.trouble();
        producer.push(b"x").await.unwrap();
        let unreachable = producer.flush().await.unwrap_err();
        assert!(unreachable.is_temporary() && matches!(unreachable, Error::Unreachable { .. }));
        assert!(trouble.has_changed().unwrap(), "nothing was said");
        // It is held, and tried again.
        assert_eq!(producer.flush().await, Err(unreachable));
        assert_eq!(producer.discard(), [&b"x"[..]]);
    });
}

/// A reader waited in silence for offsets of a log that had been deleted and created again.
#[test]
fn a_tail_has_every_record_over_restarts_and_notices_another_log_of_the_name() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let address = server.address.clone();
    let client = Client::new(&address).unwrap();
    run(async {
        let producer = producer(&client, "p", |_| ());
        for n in 0..5u32 {
            producer.push(n.to_string().as_bytes()).await.unwrap();
        }
        producer.close().await.unwrap();
        let mut tail = client.tail("clicks", StartAt::Last(2)).unwrap();
        for expected in ["3", "4"] {
            assert_eq!(tail.next().await.unwrap().value, expected);
        }
        // Dropping a wait loses nothing.
        assert!(tokio::time::timeout(Duration::from_millis(100), tail.next()).await.is_err());
        server.kill();
        let server = Server::start(data.path(), &["--create-logs", "--listen", &address]);
        let appended = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            server.connect().request("POST", "/v1/logs/clicks/records", b"5").unwrap();
        };
        let (record, ()) = tokio::join!(tail.next(), appended);
        assert_eq!(record.unwrap().offset, 5);
        client.delete("clicks").await.unwrap();
        server.connect().request("POST", "/v1/logs/clicks/records", b"new").unwrap();
        let ended = tail.next().await.unwrap_err();
        assert!(
            matches!(ended, Error::AnotherLog { .. } | Error::NoSuchLog { .. } | Error::Deleted { .. }),
            "{ended:?}"
        );
        assert_eq!(tail.next().await, Err(Error::Closed));
        let beyond = client.tail("clicks", StartAt::Offset(6)).unwrap().next().await;
        assert_eq!(beyond, Err(Error::BeyondEnd { next_offset: 1 }));
        server.kill();
    });
}

/// What was sent quickly was refused for good: only with little load did a batch fit into a segment.
#[test]
fn a_batch_that_no_segment_has_room_for_is_sent_in_parts() {
    let (_data, _server, client) = start();
    run(async {
        let settings: LogSettings = serde_json::from_str(r#"{"segment_bytes":65536}"#).unwrap();
        client.create("clicks", &settings).await.unwrap();
        let producer = producer(&client, "p", |options| options.linger = Duration::from_secs(10));
        let mut tickets = Vec::new();
        // At first it is not known how large a segment is.
        for n in 0..20_000 {
            if n == 12_000 {
                producer.begin_epoch().await.unwrap();
            }
            tickets.push(producer.submit(format!("{n}").as_bytes(), false).await.unwrap());
        }
        producer.flush().await.unwrap();
        for (n, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(ticket.await, Ok(n as u64));
        }
        let expected: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();
        assert_eq!(values(&client, "clicks").await, expected);
    });
}

/// Marks of an import are those of the batches that were stored, however small the log's segments are.
#[test]
fn a_producer_with_marks_continues_after_what_is_stored_in_a_log_of_small_segments() {
    let (_data, _server, client) = start();
    run(async {
        let settings: LogSettings =
            serde_json::from_str(r#"{"segment_bytes":65536,"record_bytes":20000}"#).unwrap();
        client.create("clicks", &settings).await.unwrap();
        let mut stored = 0;
        for _ in 0..3 {
            let producer = producer(&client, "import", |_| ());
            let mark = producer.begin_epoch().await.unwrap().mark;
            let from: u32 = mark.map_or(0, |mark| mark.parse().unwrap());
            assert_eq!(from, stored, "what is stored, and not less");
            for n in from..from + 10_000 {
                let value = if n == from + 7000 { vec![b'x'; 30_000] } else { n.to_string().into_bytes() };
                if producer.push_marked(&value, false, &(n + 1).to_string()).await.is_err() {
                    break; // it is told as soon as the batch with the large one was refused
                }
            }
            assert!(matches!(producer.flush().await, Err(Error::Refused { .. })));
            stored += producer.stored().records as u32;
        }
        let expected = values(&client, "clicks").await;
        assert_eq!(expected.len(), stored as usize);
        assert!(expected.iter().enumerate().all(|(n, value)| *value == n.to_string()));
    });
}

/// It was completed only when somebody discarded the record, or dropped the producer.
#[test]
fn a_ticket_says_that_its_record_cannot_be_stored_also_if_the_producer_cannot_begin() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let client = Client::new(&server.address).unwrap();
    run(async {
        let producer = client.producer("none", "p").unwrap();
        let ticket = producer.submit(b"1", false).await.unwrap();
        let told = tokio::time::timeout(Duration::from_secs(10), ticket).await.unwrap();
        assert!(matches!(told, Err(Error::NoSuchLog { .. })), "{told:?}");
        assert_eq!(producer.discard().len(), 1);
    });
}

/// The ticket of a record that begins a batch was completed with the batch before it.
#[test]
fn tickets_have_the_offsets_of_their_records_also_where_a_batch_ends_and_others_append() {
    let (_data, server, client) = start();
    let stop = std::sync::Arc::new(crate::support::Stops::default());
    let others = {
        let (stop, address) = (std::sync::Arc::clone(&stop), server.address.clone());
        std::thread::spawn(move || {
            let mut other = crate::support::Client::connect(&address).unwrap();
            while !stop.is_set() {
                other.request("POST", "/v1/logs/clicks/records", b"other").unwrap();
            }
        })
    };
    let at_end = stop.at_end();
    run(async {
        let producer = producer(&client, "p", |options| options.batch_bytes = 100);
        producer.begin_epoch().await.unwrap();
        let mut tickets = Vec::new();
        for n in 0..3000 {
            tickets.push((n, producer.submit(format!("{n:09}").as_bytes(), false).await.unwrap()));
        }
        producer.flush().await.unwrap();
        let mut offsets = Vec::new();
        for (n, ticket) in tickets {
            offsets.push((n, ticket.await.unwrap()));
        }
        let values = values(&client, "clicks").await;
        for (n, offset) in offsets {
            assert_eq!(values[offset as usize], format!("{n:09}"));
        }
    });
    drop(at_end);
    others.join().unwrap();
}

/// It was sent again only when something else was pushed or flushed.
#[test]
fn a_ticket_is_told_its_offset_when_the_server_is_back_after_the_patience_was_over() {
    let (data, server, client) = start();
    let address = server.address.clone();
    server.kill();
    run(async {
        let producer = producer(&client, "p", |options| options.patience = Duration::from_millis(200));
        let ticket = producer.submit(b"kept", false).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(producer.trouble().borrow().is_some());
        let _server = Server::start(data.path(), &["--create-logs", "--listen", &address]);
        let offset = tokio::time::timeout(Duration::from_secs(20), ticket).await;
        assert_eq!(offset.expect("it is sent again"), Ok(0));
        assert_eq!(values(&client, "clicks").await, ["kept"]);
    });
}

/// It cleared the error that it had to return, and went on waiting.
#[test]
fn a_push_that_waits_for_room_returns_the_error_that_keeps_the_producer_from_storing() {
    let (_data, server, client) = start();
    server.kill();
    run(async {
        let producer = producer(&client, "p", |options| options.patience = Duration::from_millis(500));
        for _ in 0..16 {
            producer.push(&vec![b'x'; (1 << 20) - 4]).await.unwrap();
        }
        let more = async { producer.push(&[b'x'; 1000]).await };
        let (pushed, flushed) =
            tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(more, producer.flush()) })
                .await
                .expect("both return");
        assert!(pushed.unwrap_err().is_temporary() && flushed.unwrap_err().is_temporary());
    });
}

/// The producer's task ended in a panic, and callers waited for good.
#[test]
fn a_producer_that_lingers_for_ever_sends_what_is_flushed() {
    let (_data, _server, client) = start();
    run(async {
        let producer = producer(&client, "p", |options| options.linger = Duration::MAX);
        producer.push(b"a").await.unwrap();
        tokio::time::timeout(Duration::from_secs(20), producer.flush()).await.expect("it ends").unwrap();
        assert_eq!(values(&client, "clicks").await, ["a"]);
    });
}

/// It failed for good, because it was not known whether its next batch had been stored: but that had been refused.
#[test]
fn a_producer_that_its_log_has_forgotten_begins_again_and_stores_the_rest() {
    let (_data, server, client) = start();
    run(async {
        let producer = producer(&client, "quiet", |_| {});
        producer.push(b"before").await.unwrap();
        producer.flush().await.unwrap();
        // More producers than a log remembers.
        let mut others = server.connect();
        for n in 0..10_050 {
            let id = format!("other-{n}");
            let headers = [("Producer-Id", &*id), ("Producer-Epoch", "0"), ("Producer-Seq", "0")];
            let stored = others.exchange("POST", "/v1/logs/clicks/records", &headers, b"x").unwrap();
            assert_eq!(stored.status, 200);
        }
        producer.push(b"after").await.unwrap();
        producer.close().await.unwrap();
        let stored = client.read("clicks", 10_051, 10).await.unwrap();
        assert_eq!(stored.records.iter().map(|record| &record.value[..]).collect::<Vec<_>>(), [b"after"]);
    });
}

/// A server that answers a request of each connection with what `answer` makes of its head and its body, and then sends
/// nothing more.
fn other_server(answer: impl Fn(&str, &[u8]) -> String + Send + Sync + 'static) -> Client {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (BufReader::new(stream.unwrap()), Arc::clone(&answer));
            std::thread::spawn(move || {
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if stream.read_line(&mut head).unwrap_or(0) == 0 {
                        return; // the client has made one connection more than it needs
                    }
                }
                let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next());
                let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
                stream.read_exact(&mut body).unwrap();
                let _ = stream.get_mut().write_all(answer(&head, &body).as_bytes()); // the client may have gone
                let _ = stream.read(&mut [0]); // until it has
            });
        }
    });
    Client::new(&address.to_string()).unwrap()
}

/// A server that hands requests on to the one at `address`, but answers some itself: `instead` gets the head, the body, and
/// what hands them on.
fn proxy(
    address: String,
    instead: impl Fn(&str, &[u8], &dyn Fn() -> String) -> Option<String> + Send + Sync + 'static,
) -> Client {
    other_server(move |head, body| {
        let hand_on = || {
            let mut server = crate::support::Client::connect(&address).unwrap();
            server.send(head.as_bytes()).unwrap();
            server.send(body).unwrap();
            let answer = server.answer().unwrap();
            answer.head.replacen("\r\n", "\r\nConnection: close\r\n", 1) + &answer.body
        };
        instead(head, body, &hand_on).unwrap_or_else(hand_on)
    })
}

/// An answer of which only the first half comes, if it does not come `whole`.
fn answer(body: &str, whole: bool) -> String {
    let part = if whole { body } else { &body[..body.len() / 2] };
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nMillstream-Next-Offset: 0\r\nContent-Length: ";
    format!("{head}{}\r\n\r\n{part}", body.len())
}

/// It was waited for without a limit.
#[test]
fn an_answer_that_stops_in_its_body_is_an_error_that_may_be_tried_again() {
    let client = other_server(|_, _| answer(r#"{"first_offset":0}"#, false));
    let refusing = other_server(|_, _| answer(r#"{"code":"x"}"#, false).replace("200 OK", "503 Wait"));
    run(async {
        for client in [client, refusing] {
            let client = client.with_max_silence(Duration::from_millis(300));
            let asked = async {
                assert!(client.create("clicks", &LogSettings::default()).await.unwrap_err().is_temporary());
                assert!(client.read("clicks", 0, 1).await.unwrap_err().is_temporary());
                assert!(client.trim("clicks", 0).await.unwrap_err().is_temporary());
                let mut tail = client.tail("clicks", StartAt::Earliest).unwrap();
                let mut trouble = tail.trouble();
                tokio::select! {
                    record = tail.next() => panic!("{record:?}"),
                    told = trouble.changed() => told.unwrap(),
                }
                assert!(matches!(&*trouble.borrow(), Some(Error::Unreachable { .. })));
            };
            tokio::time::timeout(Duration::from_secs(20), asked).await.expect("each of them ends");
        }
    });
}

/// What got only half of an answer is sent again under its number, because it may be stored; and it is told apart.
#[test]
fn an_append_whose_answer_stops_in_its_body_may_be_stored() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let client = other_server(move |head, _| {
        if head.starts_with("POST /v1/logs/clicks/producers/") {
            return answer(BEGUN, true);
        }
        let mut seen = seen.lock().unwrap();
        seen.push(head.to_owned());
        answer(r#"{"first_offset":5,"last_offset":5,"count":1,"repeated":true}"#, seen.len() > 1)
    });
    run(async {
        let client = client.with_max_silence(Duration::from_millis(300));
        let producer = client.producer("clicks", "p").unwrap();
        let ticket = producer.submit(b"x", false).await.unwrap();
        let told = tokio::time::timeout(Duration::from_secs(20), ticket).await.expect("it ends");
        assert_eq!(told, Ok(5));
        let stored = producer.close().await.unwrap();
        assert_eq!((stored.records, stored.repeated), (1, 1));
    });
    let heads = heads.lock().unwrap();
    assert!(heads.len() == 2 && heads[0] == heads[1], "{heads:?}");
    assert!(heads[0].contains("producer-epoch: 7") && heads[0].contains("producer-seq: 0"), "{heads:?}");
}

/// They waited for ever: the task had ended with its runtime.
#[test]
fn those_who_wait_for_a_producer_whose_task_has_ended_are_told() {
    let (_data, server, client) = start();
    server.kill();
    let first = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (producer, tickets) = first.block_on(async {
        let producer = producer(&client, "p", |options| options.batch_bytes = 10);
        let mut tickets = Vec::new();
        for value in [b"12345", b"67890"] {
            tickets.push(producer.submit(value, false).await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(100)).await; // the first batch is numbered, or waits for an epoch
        (producer, tickets)
    });
    drop(first);
    run(async {
        let told = async {
            for ticket in tickets {
                assert_eq!(ticket.await, Err(Error::TaskEnded));
            }
            assert_eq!(producer.flush().await, Err(Error::TaskEnded));
            assert_eq!(producer.push(b"x").await, Err(Error::TaskEnded));
            assert_eq!(producer.begin_epoch().await, Err(Error::TaskEnded));
        };
        tokio::time::timeout(Duration::from_secs(20), told).await.expect("they do not wait");
        assert_eq!(producer.discard(), [&b"12345"[..]]);
        assert_eq!(producer.discard(), [&b"67890"[..]]);
        assert!(producer.discard().is_empty());
        assert_eq!(producer.flush().await, Err(Error::TaskEnded));
    });
}

/// Appends numbers with one large record among them, and expects that all are stored but that one.
async fn append_around_a_large_record(client: &Client, direct: &Client, code: &str) {
    let producer = producer(client, "p", |options| options.linger = Duration::from_secs(10));
    let (mut tickets, mut expected) = (Vec::new(), Vec::new());
    let large = vec![b'x'; 30_000];
    for n in 0..20_000 {
        if n == 2000 {
            tickets.push(producer.submit(&large, false).await.unwrap());
        }
        expected.push(n.to_string());
        tickets.push(producer.submit(n.to_string().as_bytes(), false).await.unwrap());
    }
    let refused = producer.flush().await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { status: 413, code: its, .. } if its == code), "{refused}");
    assert_eq!(producer.discard(), [&large[..]]);
    producer.flush().await.unwrap();
    assert_eq!(tickets.remove(2000).await, Err(refused));
    for (n, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(ticket.await, Ok(n as u64));
    }
    assert_eq!(values(direct, "clicks").await, expected);
}

/// Of the four batches on the way at once, each on a connection of its own, half were refused because another had been
/// slower, and sent again; and the producer mistook some of these answers for those of a log that had forgotten it, and
/// began another epoch.
#[test]
fn batches_on_several_connections_are_stored_in_one_epoch_and_hardly_ever_sent_again() {
    let (_data, server, client) = start();
    let records = 100_000;
    run(async {
        let producer = producer(&client, "p", |options| options.batch_bytes = 32 << 10);
        for n in 0..records {
            producer.push(format!("{n:0100}").as_bytes()).await.unwrap();
        }
        assert_eq!(producer.close().await.unwrap().records, records);
    });
    let metrics = server.connect().request("GET", "/metrics", b"").unwrap().body;
    let requests = |route: &str, status: u16| {
        let name = format!(r#"millstream_requests_total{{route="{route}",status="{status}"}} "#);
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap_or(0)
    };
    let (stored, refused) =
        (requests("/v1/logs/{log}/records", 200), requests("/v1/logs/{log}/records", 409));
    assert_eq!(
        requests("/v1/logs/{log}/producers/{id}", 200),
        1,
        "epochs; {stored} stored, {refused} refused"
    );
    assert!(stored >= 300 && refused <= stored / 20, "{stored} stored, {refused} refused");
}

/// Batches were refused for good, if the server's limit was below a mebibyte.
#[test]
fn batches_are_as_large_as_the_server_accepts_and_only_a_record_that_is_larger_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs", "--max-body-bytes", "20000"]);
    let client = Client::new(&server.address).unwrap();
    run(append_around_a_large_record(&client, &client, "body_too_large"));
}

/// The whole batch was refused, with all that happened to be in it.
#[test]
fn a_record_that_is_too_large_for_its_log_is_refused_alone() {
    let (_data, _server, client) = start();
    run(async {
        let settings: LogSettings = serde_json::from_str(r#"{"record_bytes":1000}"#).unwrap();
        client.create("clicks", &settings).await.unwrap();
        append_around_a_large_record(&client, &client, "record_too_large").await;
    });
}

/// A proxy may accept less than the server says that it does; its answer has no code.
#[test]
fn batches_that_a_proxy_refuses_as_too_large_are_sent_in_parts() {
    let (_data, server, direct) = start();
    let client = proxy(server.address.clone(), |_, body, _| {
        let refusal =
            "HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\nContent-Length: 6\r\n\r\n<html>";
        (body.len() > 10_000).then(|| refusal.to_owned())
    });
    run(append_around_a_large_record(&client, &direct, ""));
}

const BEGUN: &str = r#"{"id":"p","epoch":7,"mark":null,"earlier":null,"log_id":"x"}"#;

/// The patience began before the first attempt, which a silent server could make last longer.
#[test]
fn a_server_that_was_silent_for_longer_than_the_patience_is_asked_again() {
    let appends = AtomicU32::new(0);
    let client = other_server(move |head, _| {
        if head.starts_with("POST /v1/logs/clicks/producers/") {
            return answer(BEGUN, true);
        }
        let is_first = appends.fetch_add(1, SeqCst) == 0;
        let stored = answer(r#"{"first_offset":0,"last_offset":0,"count":1,"repeated":false}"#, true);
        if is_first { String::new() } else { stored }
    });
    run(async {
        let client = client.with_max_silence(Duration::from_millis(600));
        let producer = producer(&client, "p", |options| options.patience = Duration::from_millis(500));
        let mut trouble = producer.trouble();
        producer.push(b"x").await.unwrap();
        producer.flush().await.unwrap();
        assert!(trouble.changed().await.is_ok(), "somebody is told meanwhile");
        assert_eq!(producer.close().await.unwrap().records, 1);
    });
}

/// An epoch of the producer's own, of which it does not know that it has begun, is not another producer's.
#[test]
fn a_producer_whose_next_epoch_has_begun_without_an_answer_goes_on() {
    let (_data, server, direct) = start();
    let begun = AtomicU32::new(0);
    let client = proxy(server.address.clone(), move |head, body, hand_on| {
        if body.len() > 10_000 {
            return Some("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".into());
        }
        // The second one is after the division.
        let is_lost = head.starts_with("POST /v1/logs/clicks/producers/") && begun.fetch_add(1, SeqCst) == 1;
        is_lost.then(hand_on).map(|_| String::new())
    });
    run(async {
        let client = client.with_max_silence(Duration::from_millis(500));
        let producer = producer(&client, "p", |options| options.linger = Duration::from_secs(10));
        let expected: Vec<_> = (0..2000).map(|n| n.to_string()).collect();
        for value in &expected {
            producer.push(value.as_bytes()).await.unwrap();
        }
        assert_eq!(producer.close().await.unwrap().records, 2000);
        assert_eq!(values(&direct, "clicks").await, expected);
    });
}

/// They were sent whole every 5 ms: 4.4 GB in 15 s.
#[test]
fn batches_behind_one_that_is_not_stored_are_sent_again_less_and_less_often() {
    let appends = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&appends);
    let client = other_server(move |head, _| {
        if head.starts_with("POST /v1/logs/clicks/producers/") {
            return answer(BEGUN, true);
        }
        seen.fetch_add(1, SeqCst);
        let first = head.contains("producer-seq: 0\r\n");
        let (status, body) = if first {
            ("507 Insufficient Storage", r#"{"status":507,"code":"disk_full","detail":"x"}"#.to_owned())
        } else {
            let expected = r#""expected_epoch":7,"expected_seq":0"#;
            (
                "409 Conflict",
                format!(r#"{{"status":409,"code":"producer_out_of_order","detail":"x",{expected}}}"#),
            )
        };
        answer(&body, true).replace("200 OK", status)
    });
    run(async {
        let producer = producer(&client, "p", |options| options.batch_bytes = 1000);
        for _ in 0..50 {
            drop(producer.submit(&[b'x'; 900], false).await.unwrap());
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    });
    let appends = appends.load(SeqCst);
    assert!((6..100).contains(&appends), "{appends} requests in 3 s");
}

/// It was accepted, and then nothing could be sent any more: "the server's answer makes no sense".
#[test]
fn a_mark_that_could_not_be_sent_as_it_is_is_refused_at_once() {
    let (_data, _server, client) = start();
    run(async {
        let producer = producer(&client, "p", |_| ());
        for mark in ["two\nlines", "\u{fc}", " x", "x\t", &"x".repeat(129)] {
            let refused = producer.push_marked(b"lost", false, mark).await.unwrap_err();
            assert_eq!(refused, Error::BadMark { mark: mark.to_owned() });
        }
        let longest = "x y".repeat(42);
        producer.push_marked(b"kept", false, &longest).await.unwrap();
        assert_eq!(producer.close().await.unwrap().records, 1);
        let again = client.producer("clicks", "p").unwrap().begin_epoch().await.unwrap();
        assert_eq!(again.mark.as_deref(), Some(&*longest));
        assert_eq!(values(&client, "clicks").await, ["kept"]);
    });
}

/// They were told that the producer is closed, which it is not.
#[test]
fn tickets_of_what_is_discarded_are_told_why_it_was_not_stored() {
    let (_data, server, client) = start();
    server.kill();
    run(async {
        let producer = producer(&client, "p", |options| options.patience = Duration::from_millis(100));
        let ticket = producer.submit(b"x", false).await.unwrap();
        let error = producer.flush().await.unwrap_err();
        assert_eq!(producer.discard(), [&b"x"[..]]);
        let told = ticket.await.unwrap_err();
        assert!(matches!((&told, &error), (Error::Unreachable { .. }, Error::Unreachable { .. })), "{told}");
    });
}

/// Some bytes that are no HTTP, from whatever had the server's port for a moment, stopped a producer for good.
#[test]
fn one_answer_that_makes_no_sense_does_not_stop_a_producer_that_has_begun() {
    let not_found = answer("not here", true).replace("200 OK", "404 Not Found");
    for nonsense in ["\0\0SSH-2.0\r\n\r\n".to_owned(), answer("<html>", true), answer("{}", true), not_found]
    {
        let (_data, server, direct) = start();
        let (appends, begun) = (AtomicU32::new(0), AtomicU32::new(0));
        let client = proxy(server.address.clone(), move |head, _, _| {
            let begins = head.starts_with("POST /v1/logs/clicks/producers/");
            // The first append, and the second epoch.
            let is_garbled =
                if begins { begun.fetch_add(1, SeqCst) == 1 } else { appends.fetch_add(1, SeqCst) == 0 };
            is_garbled.then(|| nonsense.clone())
        });
        run(async {
            let producer = producer(&client, "p", |_| ());
            producer.push(b"1").await.unwrap();
            producer.flush().await.unwrap();
            // It begins an epoch of the new log.
            direct.delete("clicks").await.unwrap();
            producer.push(b"2").await.unwrap();
            producer.flush().await.unwrap();
            assert_eq!(values(&direct, "clicks").await, ["2"]);
        });
    }
}

/// At the beginning it means that the address is a wrong one.
#[test]
fn an_answer_that_makes_no_sense_is_an_error_at_once_if_no_epoch_has_begun() {
    let client = other_server(|_, _| "\0\0SSH-2.0\r\n\r\n".into());
    run(async {
        let producer = producer(&client, "p", |_| ());
        let begun = tokio::time::timeout(Duration::from_secs(20), producer.begin_epoch()).await;
        assert!(matches!(begun.expect("it is not tried again"), Err(Error::Answer { .. })));
    });
}

/// It was guessed from the error, and wrong both ways.
#[test]
fn what_a_producer_holds_may_be_stored_if_no_answer_has_said_that_it_is_not() {
    // Whether the server gets the append, and what the client is told.
    let refused = answer(r#"{"code":"overloaded"}"#, true).replace("200 OK", "503 Wait");
    let unfit = answer(r#"{"code":"invalid_request"}"#, true).replace("200 OK", "400 Bad");
    let cases = [(false, refused, false), (true, answer("{}", false), true), (false, unfit, false)];
    for (is_handed_on, told, may_be_stored) in cases {
        let (_data, server, direct) = start();
        let client = proxy(server.address.clone(), move |head, _, hand_on| {
            head.starts_with("POST /v1/logs/clicks/records").then(|| {
                if is_handed_on {
                    hand_on();
                }
                told.clone()
            })
        });
        let client = client.with_max_silence(Duration::from_millis(300));
        run(async {
            let producer = producer(&client, "p", |options| options.patience = Duration::from_millis(100));
            producer.begin_epoch().await.unwrap();
            assert!(!producer.may_be_stored());
            producer.push(b"1").await.unwrap();
            producer.flush().await.unwrap_err();
            assert_eq!(producer.may_be_stored(), may_be_stored);
            assert_eq!(producer.stored().records, 0);
            assert_eq!(values(&direct, "clicks").await.len(), usize::from(is_handed_on));
            producer.discard();
            assert!(!producer.may_be_stored());
        });
    }
}
