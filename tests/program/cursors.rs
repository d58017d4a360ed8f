//! Named positions of consumers, over HTTP and by the client.

use crate::support::Server;
use millstream::client::{Client, Error};

fn server() -> (tempfile::TempDir, Server) {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    client.request("PUT", "/v1/logs/a", b"").unwrap();
    for n in 0..10 {
        let reply =
            client.request("POST", "/v1/logs/a/records", format!("{{\"n\":{n}}}").as_bytes()).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    (data, server)
}

/// The status, and the body without the log's id.
fn ask(server: &Server, method: &str, target: &str, body: &str) -> (u16, String) {
    let reply = server.connect().request(method, &format!("/v1/logs/a{target}"), body.as_bytes()).unwrap();
    let body = reply.body.split(",\"log_id\"").next().unwrap_or_default().trim_end().to_owned();
    (reply.status, body)
}

fn code(answer: &(u16, String)) -> (u16, &str) {
    let code = answer.1.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next());
    (answer.0, code.unwrap_or_default())
}

#[test]
fn cursors_are_set_compared_read_from_listed_and_removed_and_are_there_after_a_kill() {
    let (data, server) = server();
    let put =
        |server: &Server, query: &str, body: &str| ask(server, "PUT", &format!("/cursors/c{query}"), body);
    assert_eq!(code(&ask(&server, "GET", "/cursors/c", "")), (404, "cursor_not_found"));
    assert_eq!(code(&ask(&server, "GET", "/records?cursor=c", "")), (404, "cursor_not_found"));
    assert_eq!(code(&ask(&server, "DELETE", "/cursors/c", "")), (404, "cursor_not_found"));
    assert_eq!(code(&put(&server, "?expect=0", "{\"offset\":4}")), (412, "unexpected_cursor"));
    assert_eq!(
        put(&server, "?expect=none", "{\"offset\":4}"),
        (201, "{\"name\":\"c\",\"offset\":4,\"lag\":6".to_owned())
    );
    let refused = put(&server, "?expect=3", "{\"offset\":5}");
    assert_eq!(code(&refused), (412, "unexpected_cursor"));
    assert!(refused.1.contains("\"offset\":4"), "{}", refused.1);
    assert_eq!(put(&server, "?expect=4", "{\"offset\":10}").0, 200);
    let beyond = put(&server, "", "{\"offset\":11}");
    assert_eq!(code(&beyond), (416, "offset_beyond_end"));
    assert!(beyond.1.contains("\"next_offset\":10"), "{}", beyond.1);
    assert_eq!(put(&server, "", "{\"offset\":7}").0, 200);
    for (query, body, expected) in [
        ("", "[7]", (400, "invalid_request")),
        ("", "{}", (400, "invalid_request")),
        ("", "{\"offset\":-1}", (400, "invalid_request")),
        ("", "{\"offset\":1,\"more\":2}", (400, "invalid_request")),
        ("", "{", (400, "invalid_json")),
        ("?expect=x", "{\"offset\":1}", (400, "invalid_query")),
        ("?expect=7&expect=7", "{\"offset\":1}", (400, "invalid_query")),
        ("?other=7", "{\"offset\":1}", (400, "invalid_query")),
    ] {
        assert_eq!(code(&put(&server, query, body)), expected, "{query} {body}");
    }
    assert_eq!(code(&ask(&server, "PUT", "/cursors/.c", "{\"offset\":1}")), (400, "invalid_cursor"));
    assert_eq!(code(&ask(&server, "GET", "/records?cursor=c&offset=1", "")), (400, "invalid_query"));
    server.kill();
    let server = Server::start(data.path(), &[]);
    assert_eq!(
        ask(&server, "GET", "/cursors/c", ""),
        (200, "{\"name\":\"c\",\"offset\":7,\"lag\":3".to_owned())
    );
    let (status, records) = ask(&server, "GET", "/records?cursor=c&limit=2", "");
    assert_eq!((status, records.matches("\"offset\"").count()), (200, 2));
    assert!(records.starts_with("{\"offset\":7,"), "{records}");
    let metrics = server.connect().request("GET", "/metrics", b"").unwrap().body;
    assert!(metrics.contains("millstream_cursor_lag_records{log=\"a\",cursor=\"c\"} 3\n"), "{metrics}");
    put(&server, "", "{\"offset\":8}");
    assert!(ask(&server, "GET", "/cursors", "").1.starts_with("{\"cursors\":[{\"name\":\"c\",\"offset\":8,"));
    assert_eq!(ask(&server, "DELETE", "/cursors/c?expect=7", "").0, 412);
    assert_eq!(ask(&server, "DELETE", "/cursors/c", "").0, 204);
    assert_eq!(ask(&server, "GET", "/cursors", "").1, "{\"cursors\":[]}");
    // They are gone with the log.
    put(&server, "", "{\"offset\":0}");
    assert_eq!(ask(&server, "DELETE", "", "").0, 204);
    assert_eq!(ask(&server, "PUT", "", "").0, 201);
    assert_eq!(ask(&server, "GET", "/cursors", "").1, "{\"cursors\":[]}");
}

#[test]
fn cursors_that_are_damaged_are_said_to_be_and_can_be_removed() {
    let (data, server) = server();
    assert_eq!(ask(&server, "PUT", "/cursors/c", "{\"offset\":1}").0, 201);
    server.kill();
    let path = data.path().join("a/cursors.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(":1}", ":2}")).unwrap();
    let server = Server::start(data.path(), &[]);
    for (method, target) in [("GET", "/cursors"), ("GET", "/cursors/c"), ("GET", "/records?cursor=c")] {
        assert_eq!(code(&ask(&server, method, target, "")), (500, "cursors_damaged"), "{target}");
    }
    assert_eq!(code(&ask(&server, "PUT", "/cursors/c", "{\"offset\":1}")), (500, "cursors_damaged"));
    assert_eq!(ask(&server, "GET", "/records", "").0, 200);
    assert_eq!(ask(&server, "POST", "/records", "{}").0, 200);
    assert_eq!(ask(&server, "DELETE", "/cursors", "").0, 204);
    assert_eq!(ask(&server, "PUT", "/cursors/c", "{\"offset\":1}").0, 201);
}

#[test]
fn a_client_has_cursors() {
    let (_data, server) = server();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::new(&format!("http://{}", server.address)).unwrap();
        let cursor = client.cursor("a", "c").unwrap();
        assert_eq!(cursor.get().await.unwrap(), None);
        assert!(!cursor.remove().await.unwrap());
        cursor.set_if(None, 3).await.unwrap();
        let error = cursor.set_if(None, 4).await.unwrap_err();
        assert!(matches!(error, Error::UnexpectedCursor { offset: Some(3) }), "{error}");
        let error = client.cursor("a", "d").unwrap().set_if(Some(1), 4).await.unwrap_err();
        assert!(matches!(error, Error::UnexpectedCursor { offset: None }), "{error}");
        let error = cursor.set(11).await.unwrap_err();
        assert!(matches!(error, Error::BeyondEnd { next_offset: 10 }), "{error}");
        cursor.set(4).await.unwrap();
        let info = cursor.get().await.unwrap().unwrap();
        assert_eq!((&*info.name, info.offset, info.lag), ("c", 4, 6));
        assert_eq!(client.cursors("a").await.unwrap(), [info]);
        let page = client.read_query("a", "cursor=c").await.unwrap();
        assert_eq!((page.records.len(), page.records[0].offset), (6, 4));
        assert!(cursor.remove().await.unwrap());
        assert!(matches!(client.cursor("a", "x?y"), Err(Error::BadName { .. })));
        assert!(matches!(client.cursor("b", "c").unwrap().set(0).await, Err(Error::NoSuchLog { .. })));
    });
}
