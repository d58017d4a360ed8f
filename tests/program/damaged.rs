//! Reading over damage: by each format, tail, client and command, before `repair` and after it.

use crate::support::{Reply, Server, program};
use millstream::client::{Client, Error, StartAt};
use std::{io::BufRead, path::Path};

/// Records of 100 bytes take 128 in a segment, after its header.
const fn at(record: usize) -> usize {
    4096 + record * 128
}

/// The records that are damaged, of twenty.
const DAMAGED: [u64; 4] = [3, 4, 7, 19];

/// A log of twenty records, some of which are damaged.
fn damaged(data: &Path) {
    let mut server = Server::start(data, &[]);
    let mut client = server.connect();
    client.request("PUT", "/v1/logs/a", b"").unwrap();
    for n in 0..20u8 {
        let answer = client.request("POST", "/v1/logs/a/records", &[b'a' + n; 100]).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    drop(client);
    assert_eq!(server.terminate(), Some(0));
    let path = data.join("a/00000000000000000000.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    for record in DAMAGED {
        bytes[at(record as usize) + 60] ^= 1;
    }
    std::fs::write(&path, bytes).unwrap();
}

/// The status, the head, and the body.
fn get(server: &Server, accept: &str, query: &str) -> (u16, String, String) {
    let mut client = server.connect();
    let head =
        format!("GET /v1/logs/a/records{query} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
    client.send(head.as_bytes()).unwrap();
    let Reply { status, head, body } = client.reply().unwrap();
    let head = head.to_lowercase();
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    (status, head, String::from_utf8_lossy(&body).into_owned())
}

fn offsets(lines: &str) -> Vec<u64> {
    let number = |line: &str| line.strip_prefix("{\"offset\":")?.split([',', '}']).next()?.parse().ok();
    lines.lines().filter_map(number).collect()
}

/// What a live tail sends until `enough` is in it.
fn events(server: &Server, query: &str, enough: &str) -> String {
    let mut client = server.connect();
    let target = format!("/v1/logs/a/records{query}");
    let head = format!("GET {target} HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
    client.send(head.as_bytes()).unwrap();
    let mut sent = String::new();
    while !sent.contains(enough) {
        assert_ne!(client.0.read_line(&mut sent).unwrap(), 0, "{sent}");
    }
    sent
}

/// The exit code of a command, what it prints, and what it says.
fn command(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = program::millstream().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const NDJSON: &str = "application/x-ndjson";
const ALL: [&str; 5] = [
    NDJSON,
    "application/json",
    "text/plain",
    "application/octet-stream",
    "application/vnd.millstream.frames",
];

/// A range, a live tail and the commands stopped at the damaged record for good, and an offline `read` left out the records
/// before it.
#[test]
fn damage_is_an_error_that_says_where_to_continue_and_is_passed_if_asked() {
    let data = tempfile::tempdir().unwrap();
    damaged(data.path());
    let server = Server::start(data.path(), &[]);
    for accept in ALL {
        let (status, head, _) = get(&server, accept, "");
        assert!(status == 200 && head.contains("millstream-next-offset: 3\r\n"), "{accept}: {head}");
        let (status, _, body) = get(&server, accept, "?offset=3");
        let expected = "\"code\":\"record_damaged\"";
        assert!(status == 500 && body.contains(expected), "{accept}: {body}");
        assert!(body.contains("\"next_readable\":5,\"offset\":3"), "{accept}: {body}");
        let (status, head, _) = get(&server, accept, "?damaged=skip");
        assert!(status == 200 && head.contains("millstream-next-offset: 20\r\n"), "{accept}: {head}");
    }
    let left: Vec<u64> = (0..20).filter(|offset| !DAMAGED.contains(offset)).collect();
    assert_eq!(offsets(&get(&server, NDJSON, "?damaged=skip").2), left);
    assert_eq!(offsets(&get(&server, NDJSON, "?offset=3&limit=2&damaged=skip").2), [5, 6]);
    assert_eq!(offsets(&get(&server, NDJSON, "?offset=19&damaged=skip").2), [] as [u64; 0]);
    assert_eq!(get(&server, NDJSON, "?damaged=no").0, 400);
    assert!(get(&server, NDJSON, "/3").2.contains("\"next_readable\":5"));
    assert!(get(&server, NDJSON, "/19").2.contains("\"next_readable\":20"));

    let failed = events(&server, "?offset=1", "next_readable");
    assert!(failed.contains("id: 2\n") && failed.contains("event: failed\n"), "{failed}");
    assert!(failed.contains("\"next_offset\":3,\"next_readable\":5}"), "{failed}");
    let passed = events(&server, "?offset=0&damaged=skip", "id: 18\n");
    assert!(
        passed.contains("id: 5\n") && !passed.contains("id: 4\n") && !passed.contains("failed"),
        "{passed}"
    );

    let url = format!("http://{}", server.address);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::new(&url).unwrap();
        let error = client.read("a", 3, 10).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { offset: 3, next_readable: Some(5), .. }), "{error}");
        let mut tail = client.tail("a", StartAt::Earliest).unwrap();
        for _ in 0..3 {
            tail.next().await.unwrap();
        }
        assert!(matches!(tail.next().await, Err(Error::Damaged { offset: 3, .. })));
        let mut tail = client.tail("a", StartAt::Earliest).unwrap().skip_damaged();
        for offset in &left {
            assert_eq!(tail.next().await.unwrap().offset, *offset);
        }
    });
    let stops = |at: &[&str]| {
        let (code, printed, said) = command(&[&["read", "a", "--json"], at].concat());
        assert_eq!((code, offsets(&printed)), (Some(1), vec![0, 1, 2]), "{said}");
        assert!(said.contains("offset 3") && said.contains("at 5: --skip-damaged continues there"), "{said}");
        let (code, printed, said) = command(&[&["read", "a", "--json", "--skip-damaged"], at].concat());
        assert_eq!((code, &offsets(&printed)), (Some(0), &left), "{said}");
        let (code, printed, _) =
            command(&[&["tail", "a", "--json", "--skip-damaged", "-n", "4"], at].concat());
        assert_eq!((code, offsets(&printed)), (Some(0), vec![16, 17, 18]));
        let part = ["read", "a", "--json", "--skip-damaged", "--offset", "2", "--until", "6"];
        let (code, printed, _) = command(&[&part, at].concat());
        assert_eq!((code, offsets(&printed)), (Some(0), vec![2, 5]), "what was passed counts");
    };
    stops(&["--url", &url]);
    drop(server);
    stops(&["--data", data.path().to_str().unwrap()]);
}

/// With `--data` it said nothing of damage in a sealed segment, which a server had found.
#[test]
fn a_log_in_a_directory_is_described_with_its_damage_as_a_server_describes_it() {
    let data = tempfile::tempdir().unwrap();
    let dir = ["--data", data.path().to_str().unwrap()];
    let lines = data.path().with_extension("lines");
    std::fs::write(&lines, "x".repeat(100) + "\n" + &"line\n".repeat(999)).unwrap();
    let append = ["append", "a", lines.to_str().unwrap(), "--create", "--segment-bytes", "4KiB"];
    assert_eq!(command(&[&append, &dir[..]].concat()).0, Some(0));
    let described = |at: &[&str]| -> serde_json::Value {
        let (code, printed, said) = command(&[&["logs", "describe", "a", "--json"], at].concat());
        assert_eq!(code, Some(0), "{said}");
        serde_json::from_str(&printed).unwrap()
    };
    assert!(described(&dir)["damage"].is_null());
    let first = data.path().join("a/00000000000000000000.seg");
    let mut bytes = std::fs::read(&first).unwrap();
    bytes[4096 + 60] ^= 1;
    std::fs::write(&first, bytes).unwrap();
    let server = Server::start(data.path(), &[]);
    let url = ["--url", &server.address];
    let begun = std::time::Instant::now();
    let there = loop {
        let there = described(&url);
        if there["damage"].is_array() {
            break there;
        }
        assert!(begun.elapsed().as_secs() < 60, "the server finds nothing");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let (_, shown_there, _) = command(&[&["logs", "describe", "a"], &url[..]].concat());
    drop(server);
    let (code, shown, _) = command(&[&["logs", "describe", "a"], &dir[..]].concat());
    assert!(code == Some(0) && shown.contains("a is damaged, offset 0: "), "{shown}");
    assert_eq!(described(&dir)["damage"], there["damage"]);
    let damage = |shown: &str| shown.lines().find(|line| line.contains("damaged")).map(str::to_owned);
    assert_eq!(damage(&shown), damage(&shown_there));
}

/// After `repair`, `verify` found nothing, and reading still stopped there.
#[test]
fn after_repair_a_lost_record_is_marked_in_every_format_and_readers_pass() {
    let data = tempfile::tempdir().unwrap();
    damaged(data.path());
    let (code, _, said) = command(&["repair", data.path().join("a").to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
    let server = Server::start(data.path(), &[]);
    let whole: Vec<u64> = (0..20).collect();
    let lines = get(&server, NDJSON, "").2;
    assert_eq!(offsets(&lines), whole);
    let lost: Vec<&str> = lines.lines().filter(|line| line.contains("lost")).collect();
    assert_eq!(lost, DAMAGED.map(|offset| format!("{{\"offset\":{offset},\"lost\":true}}")));
    for accept in ALL {
        let (status, head, _) = get(&server, accept, "");
        assert!(status == 200 && head.contains("millstream-lost-records: 4\r\n"), "{accept}: {head}");
        let mut client = server.connect();
        let request =
            format!("HEAD /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
        client.send(request.as_bytes()).unwrap();
        let mut only_head = String::new();
        while !only_head.ends_with("\r\n\r\n") {
            client.0.read_line(&mut only_head).unwrap();
        }
        let length = |head: &str| {
            let head = head.to_lowercase();
            head.split("content-length: ").nth(1).and_then(|rest| Some(rest.split('\r').next()?.to_owned()))
        };
        assert_eq!(length(&only_head), length(&head), "{accept}");
    }
    assert!(get(&server, "text/plain", "?offset=2&limit=3").2.ends_with("c\n\n\n"));
    assert!(
        get(&server, "application/json", "?offset=3&limit=1").2.contains("[{\"offset\":3,\"lost\":true}]")
    );
    let (status, _, body) = get(&server, NDJSON, "/3");
    assert!(status == 410 && body.contains("\"code\":\"record_lost\""), "{body}");
    let followed = events(&server, "?offset=0", "id: 18\n");
    assert!(followed.contains("event: lost\nid: 3\ndata: {\"offset\":3,\"lost\":true}\n\n"), "{followed}");

    let url = format!("http://{}", server.address);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::new(&url).unwrap();
        let page = client.read("a", 0, 100).await.unwrap();
        for record in &page.records {
            assert_eq!(record.lost, DAMAGED.contains(&record.offset));
            assert_eq!(record.value.len(), if record.lost { 0 } else { 100 });
        }
        assert_eq!((page.records.len(), page.next_offset), (20, 20));
    });
    let reads = |at: &[&str]| {
        let (code, printed, _) = command(&[&["read", "a", "--json"], at].concat());
        assert_eq!((code, offsets(&printed)), (Some(0), whole.clone()));
        assert_eq!(printed.matches(",\"lost\":true}\n").count(), 4);
        let (code, printed, said) = command(&[&["read", "a"], at].concat());
        assert_eq!((code, printed.lines().count(), said.lines().count()), (Some(0), 16, 4), "{said}");
    };
    reads(&["--url", &url]);
    drop(server);
    reads(&["--data", data.path().to_str().unwrap()]);
}

/// A large range ended at the damage that it was to pass, before the offset that its head had said, and was broken off.
#[test]
fn a_large_range_that_passes_damage_at_its_end_is_whole() {
    let (_data, server) = with_damage((0..40).map(|n| vec![b'A' + n; 100_000]), &[20, 38, 39]);
    for accept in ALL {
        let Reply { status, head, body } = skipping(&server, "", accept);
        assert!(
            status == 200 && head.to_lowercase().contains("millstream-next-offset: 40\r\n"),
            "{accept}: {head}"
        );
        match accept {
            "text/plain" => assert_eq!(body.len(), 37 * 100_001),
            "application/octet-stream" => assert_eq!(body.len(), 37 * 100_000),
            "application/json" => assert!(body.ends_with(b"],\"next_offset\":40}\n"), "{accept}"),
            _ => assert!(body.len() > 37 * 100_000, "{accept}"),
        }
    }
}

/// What precedes the records was written once more for each piece until there was a record, so that an answer in JSON was none.
#[test]
fn a_range_that_begins_with_damage_before_a_large_record_is_whole() {
    let lengths = [100, 100, 2_000_000, 100];
    let (_data, server) = with_damage((0..4).map(|n| vec![b'A' + n; lengths[usize::from(n)]]), &[1]);
    for (offset, values) in [(0, vec![100, 2_000_000, 100]), (1, vec![2_000_000, 100])] {
        for accept in ALL {
            let Reply { status, body, .. } = skipping(&server, &format!("offset={offset}&"), accept);
            assert_eq!(status, 200, "{accept}");
            let all: usize = values.iter().sum();
            match accept {
                "text/plain" => assert_eq!(body.len(), all + values.len()),
                "application/octet-stream" => assert_eq!(body.len(), all),
                "application/json" => {
                    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
                    assert_eq!(json["records"].as_array().map(Vec::len), Some(values.len()), "{offset}");
                }
                _ => assert!(body.len() > all, "{accept}"),
            }
        }
    }
}

/// A server whose log has these records, the first one of `A`, the next one of `B`, and so on, of which some are damaged.
fn with_damage(records: impl Iterator<Item = Vec<u8>>, which: &[u8]) -> (tempfile::TempDir, Server) {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    client.request("PUT", "/v1/logs/a", b"").unwrap();
    for record in records {
        client.request("POST", "/v1/logs/a/records", &record).unwrap();
    }
    drop(client);
    assert_eq!(server.terminate(), Some(0));
    for record in which {
        flip(&data.path().join("a"), &[b'A' + record; 50]);
    }
    let server = Server::start(data.path(), &[]);
    (data, server)
}

/// The answer to a range that passes damage, and begins as the query says.
fn skipping(server: &Server, query: &str, accept: &str) -> Reply {
    let mut client = server.connect();
    let target = format!("/v1/logs/a/records?{query}damaged=skip&max_bytes=100000000");
    let head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
    client.send(head.as_bytes()).unwrap();
    client.reply().unwrap()
}

/// Flips a bit in the file of a log that has these bytes, at the first of them.
fn flip(log: &std::path::Path, value: &[u8]) {
    for file in std::fs::read_dir(log).unwrap() {
        let path = file.unwrap().path();
        let Ok(mut bytes) = std::fs::read(&path) else { continue };
        if let Some(at) = bytes.windows(value.len()).position(|window| window == value) {
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
        }
    }
}
