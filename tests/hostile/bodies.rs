//! Bodies that are small to send, and large to process.

use super::{
    MIB, code,
    support::{
        Client, Server, Stops,
        process::{Process, TICKS},
        processor::Processor,
    },
};
use std::{
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

fn post(client: &mut Client, target: &str, media_type: &str, encoding: &str, body: &[u8]) -> (u16, String) {
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Encoding: {encoding}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.send(head.as_bytes()).unwrap();
    client.send(body).unwrap();
    let answer = client.answer().unwrap();
    (answer.status, if answer.status == 200 { "stored".to_owned() } else { code(&answer.body).to_owned() })
}

/// A description, the type and encoding, the body, the bytes that it decodes to, and the expected status and code.
type Case = (&'static str, &'static str, &'static str, Vec<u8>, usize, u16, &'static str);

/// 56 bytes were kept for each record before anything was refused: 2,067 bytes of zstd took 3.6 GB.
#[test]
fn a_body_costs_a_small_multiple_of_its_bytes_whatever_it_decodes_to() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let process = Process::of(&server.child);
    let mut client = server.connect();
    let (text, lines, json, frames, bytes) = (
        "text/plain",
        "application/x-ndjson",
        "application/json",
        "application/vnd.millstream.frames",
        "application/octet-stream",
    );
    let list = |record: &str, max: usize| {
        let records = vec![record; (max - 20) / (record.len() + 1)].join(",");
        format!(r#"{{"records":[{records}]}}"#).into_bytes()
    };
    let window_of_128_mib = {
        let mut out = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        out.window_log(27).unwrap();
        out.write_all(b"harmless\n").unwrap();
        out.finish().unwrap()
    };
    let deep = [vec![b'['; 1_000_000], vec![b']'; 1_000_000]].concat();
    let deep_list = [&br#"{"records":[{"json":"#[..], &deep, b"}]}"].concat();
    let (too_many, all) = (413, 64 * MIB);
    let much = vec![b'A'; all - 100];
    let long_value = [&br#"{"records":[{"value":"#[..], b"\"", &much, b"*\"}]}"].concat();
    let long_name = [&br#"{"\u0041"#[..], &much, b"\":1}"].concat();
    let cases: Vec<Case> = vec![
        ("64 MiB of line ends", text, "zstd", zstd(&vec![b'\n'; all]), 0, too_many, "record_too_large"),
        ("64 MiB of line ends", text, "gzip", gzip(&vec![b'\n'; all]), 0, too_many, "record_too_large"),
        ("32 Mi short lines", lines, "gzip", gzip(&b"1\n".repeat(all / 2)), 0, too_many, "record_too_large"),
        ("16 Mi empty frames", frames, "zstd", zstd(&vec![0; all]), 0, too_many, "record_too_large"),
        ("64 MiB as one record", bytes, "zstd", zstd(&vec![0; all]), all, too_many, "record_too_large"),
        (
            "6 Mi records of JSON",
            json,
            "zstd",
            zstd(&list(r#"{"json":1}"#, all)),
            2 * all,
            too_many,
            "record_too_large",
        ),
        (
            "5 Mi empty values",
            json,
            "zstd",
            zstd(&list(r#"{"value":""}"#, all)),
            2 * all,
            too_many,
            "record_too_large",
        ),
        ("64 MiB of blanks", lines, "zstd", zstd(&b" \n".repeat(all / 2)), all, 400, "empty_batch"),
        ("a byte more than may be", lines, "zstd", zstd(&vec![b' '; all + 1]), all, 413, "body_too_large"),
        ("256 MiB", json, "gzip", gzip(&vec![b' '; 4 * all]), all, 413, "body_too_large"),
        ("a window of 128 MiB", text, "zstd", window_of_128_mib, 0, 400, "invalid_encoding"),
        ("16 MiB of line ends", text, "identity", vec![b'\n'; 16 * MIB], 0, too_many, "record_too_large"),
        ("8 Mi short lines", lines, "identity", b"1\n".repeat(8 * MIB), 0, too_many, "record_too_large"),
        ("4 Mi empty frames", frames, "identity", vec![0; 16 * MIB], 0, too_many, "record_too_large"),
        ("JSON a million deep", lines, "identity", deep[..1_000_000].to_vec(), 0, 400, "invalid_json"),
        // These were copied outside the budget: a value even if it has no escapes.
        ("base64 that is none at its end", json, "zstd", zstd(&long_value), all, 400, "invalid_base64"),
        ("a long name with an escape", json, "zstd", zstd(&long_name), all, 400, "invalid_request"),
        // Last, because they make the engine allocate larger chunks in the background.
        ("JSON a million deep", lines, "identity", deep.clone(), 0, 200, "stored"),
        ("JSON a million deep", json, "identity", deep_list, 2 * MIB, 200, "stored"),
    ];
    client.append(b"so that all is there that is made once").unwrap();
    let before = process.memory();
    for (what, media_type, encoding, body, decoded, status, code) in cases {
        process.reset_peak();
        let (start, spent) = (process.resident(), process.time());
        let answer = post(&mut client, "/v1/logs/a/records", media_type, encoding, &body);
        let (cost, spent) = (process.peak().saturating_sub(start), process.time().saturating_sub(spent));
        println!(
            "{what} ({media_type}, {encoding}): {} bytes sent, {} KiB at the most, {spent:?}",
            body.len(),
            cost / 1024
        );
        assert_eq!(answer, (status, code.to_owned()), "{what} as {media_type}, {encoding}");
        // The body, a second time if it is stored, what it decodes to, and what decoding needs (a window of 8 MiB).
        // Stored records may make the engine allocate larger chunks, which are in a budget of their own.
        let chunks = if status == 200 { 32 * MIB } else { 0 };
        let allowed = 2 * body.len() + decoded + 12 * MIB + chunks;
        assert!(cost <= allowed, "{what} as {media_type}, {encoding}: {cost} bytes, and may cost {allowed}");
        // So does the time: three times what any of them takes, and a few ticks.
        let allowed = Duration::from_millis(20) * ((body.len() + decoded) / MIB) as u32 + TICKS;
        assert!(spent < allowed, "{what} as {media_type}, {encoding}: {spent:?}, and may take {allowed:?}");
    }
    // The memory is given back at once.
    let after = process.memory();
    assert!(after < before + 24 * MIB, "{before} bytes before, {after} after");
    // A batch that fits: 1.7 million records in 3.4 MB, and no list of them is made.
    let (body, start) = (b"x\n".repeat(1_700_000), process.memory());
    let sampler = std::thread::spawn(move || {
        let until = std::time::Instant::now() + Duration::from_secs(1);
        let samples = std::iter::from_fn(|| (std::time::Instant::now() < until).then(|| process.memory()));
        samples.max().unwrap()
    });
    assert_eq!(post(&mut client, "/v1/logs/b/records", text, "identity", &body), (200, "stored".to_owned()));
    let cost = sampler.join().unwrap().saturating_sub(start);
    println!("1.7 million records in {} bytes: {} KiB at the most", body.len(), cost / 1024);
    // 11 MiB are the engine's: the positions of the records in its chunk of 64 MiB.
    assert!(cost < 3 * body.len() + 16 * MIB, "{cost} bytes for a body of {}", body.len());
}

/// The answer contained the name of an unknown field, 63 MiB of it for a body of a few KiB of zstd.
#[test]
fn a_refusal_is_small_whatever_was_sent() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let mut client = server.connect();
    client.append(b"there is a log").unwrap();
    let (records, book, settings, trim) =
        ("/v1/logs/default/records", "/", "/v1/logs/x", "/v1/logs/default/trim");
    for name in ["a", "\\u0001", "\\\"", "ä", "🦀"] {
        let long = name.repeat(MIB / name.len());
        let object = format!(r#"{{"{long}":1}}"#);
        let list = format!(r#"{{"records":[{object}]}}"#);
        // Bodies without records must be small.
        let (name, text) =
            (name.repeat(60_000 / name.len()), format!(r#""{}""#, name.repeat(60_000 / name.len())));
        let small = format!(r#"{{"{name}":1}}"#);
        let cases = [
            ("POST", records, "zstd", zstd(list.as_bytes())),
            ("POST", records, "gzip", gzip(list.as_bytes())),
            ("POST", records, "identity", list.clone().into_bytes()),
            ("POST", records, "identity", object.clone().into_bytes()),
            ("POST", records, "identity", format!(r#""{long}""#).into_bytes()),
            ("POST", book, "identity", object.clone().into_bytes()),
            ("POST", book, "identity", format!(r#"{{"record":{object}}}"#).into_bytes()),
            ("POST", book, "identity", format!(r#"{{"record":{{"value":{object}}}}}"#).into_bytes()),
            ("GET", book, "identity", format!(r#"{{"offset":{text}}}"#).into_bytes()),
            ("PUT", settings, "identity", small.clone().into_bytes()),
            ("PUT", settings, "identity", text.clone().into_bytes()),
            ("POST", trim, "identity", small.clone().into_bytes()),
            ("POST", trim, "identity", format!(r#"{{"before":{text}}}"#).into_bytes()),
        ];
        for (method, target, encoding, body) in cases {
            let head = format!(
                "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Encoding: {encoding}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            client.send(head.as_bytes()).unwrap();
            client.send(&body).unwrap();
            let answer = client.answer().unwrap();
            let what = format!("{method} {target} ({encoding}) with {name:.8?}");
            assert_eq!(answer.status, 400, "{what}");
            assert!(answer.body.len() < 4 << 10, "{what}: {} bytes", answer.body.len());
            assert!(answer.body.contains("; send "), "{what}: it is not said what to send");
        }
    }
    // What is in the request's head: a log's name, a parameter, a host.
    let long = "%F0%9F%A6%80".repeat(4000);
    for target in [format!("/v1/logs/{long}"), format!("{records}?{long}=1"), format!("/?{long}")] {
        let answer = client.request("GET", &target, b"").unwrap();
        assert!(answer.status >= 400 && answer.body.len() < 4 << 10, "{:.30}: {}", target, answer.body.len());
    }
}

/// There were two turns for all compressed bodies, whatever they decoded to: behind a few bombs everybody waited, and
/// was then refused.
#[test]
fn a_small_compressed_body_does_not_wait_behind_bombs() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let blanks = |end: &[u8]| zstd(&[&vec![b' '; 64 * MIB - 100], end].concat());
    // Each takes the server as long as possible: a body that is not JSON is parsed twice, to say why.
    let bombs = [
        ("application/json", "zstd", blanks(b"x")),
        ("application/x-ndjson", "zstd", blanks(b"")),
        ("application/json", "gzip", gzip(&[&vec![b' '; 64 * MIB - 100], &b"x"[..]].concat())),
    ];
    let lines = |bytes: usize| {
        let line = b"{\"level\":\"info\",\"message\":\"what a shipper sends\",\"took\":12.5}\n";
        gzip(&line.repeat(bytes / line.len()))
    };
    let (small, medium) = (lines(200 << 10), lines(3 * MIB));
    let stop = Stops::default();
    let (thrown, let_in) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for n in 0..24 {
            let (server, stop, thrown, let_in) = (&server, &stop, &thrown, &let_in);
            let (media_type, encoding, bomb) = &bombs[n % bombs.len()];
            scope.spawn(move || {
                let mut client = server.connect();
                while !stop.is_set() {
                    let (status, code) = post(&mut client, "/v1/logs/a/records", media_type, encoding, bomb);
                    assert!(matches!(status, 400 | 503), "{status} {code}");
                    thrown.fetch_add(1, Ordering::Relaxed);
                    let_in.fetch_add(u64::from(status == 400), Ordering::Relaxed);
                }
            });
        }
        let stops = stop.at_end();
        std::thread::sleep(Duration::from_millis(500));
        let mut client = server.connect();
        let mut slowest = [Duration::ZERO; 2];
        let begun = Instant::now();
        let mut sent = 0;
        while begun.elapsed() < super::a_while(2.0) {
            for (body, slowest) in [&small, &medium].into_iter().zip(&mut slowest) {
                let begun = Instant::now();
                let answer = post(&mut client, "/v1/logs/b/records", "application/x-ndjson", "gzip", body);
                assert_eq!(answer, (200, "stored".to_owned()), "after {:?}, the {sent}th", begun.elapsed());
                *slowest = begun.elapsed().max(*slowest);
                sent += 1;
            }
        }
        drop(stops);
        println!(
            "beside {thrown:?} bombs, {let_in:?} of them decoded: {sent} bodies of a shipper, the slowest small one {:?}, the slowest of 3 MiB {:?}",
            slowest[0], slowest[1]
        );
        assert!(slowest[0] < Duration::from_secs(1) && slowest[1] < Duration::from_secs(2), "{slowest:?}");
    });
    assert!(let_in.load(Ordering::Relaxed) > 2, "no large body gets through");
}
