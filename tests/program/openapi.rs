//! Compares the document at `/openapi.json` with the server: it has every path and method of the server and no other,
//! every query parameter in it is accepted and no other, and real answers have the members that it describes.

use crate::support::Server;
use millstream::Code;
use serde_json::Value;
use std::collections::BTreeSet;

const METHODS: [&str; 5] = ["GET", "PUT", "POST", "DELETE", "PATCH"];

fn real(path: &str) -> String {
    path.replace("{log}", "a").replace("{offset}", "0").replace("{id}", "p").replace("{name}", "c")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

#[test]
fn the_document_says_what_the_server_does() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    client.request("PUT", "/v1/logs/a", b"").unwrap();
    client.append(b"x").unwrap();
    let document = json(&client.request("GET", "/openapi.json", b"").unwrap().body);
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 13);
    for (path, operations) in paths {
        let told: BTreeSet<String> = METHODS
            .iter()
            .filter(|method| operations.get(method.to_lowercase()).is_some())
            .map(|&method| method.to_owned())
            .collect();
        // The answer to a method that does not exist lists those that do.
        let refused = client.request("PATCH", &real(path), b"").unwrap();
        assert_eq!(refused.status, 405, "{path}");
        let allowed = refused.head.split("allow: ").nth(1).unwrap().split('\r').next().unwrap();
        let mut allowed: BTreeSet<String> = allowed.split(", ").map(str::to_owned).collect();
        assert_eq!(allowed.remove("HEAD"), allowed.contains("GET"), "{path}"); // implied by GET
        assert_eq!(allowed, told, "{path}");
        for method in &told {
            let parameters = operations[method.to_lowercase()]["parameters"].as_array();
            let names: Vec<&str> = parameters
                .into_iter()
                .flatten()
                .filter(|parameter| parameter["in"] == "query")
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            if names.is_empty() || path == "/" {
                continue;
            }
            // The answer to a parameter that does not exist lists those that do.
            let refused = client.request(method, &format!("{}?none=1", real(path)), b"").unwrap();
            assert_eq!(refused.status, 400, "{method} {path}");
            for name in names {
                assert!(refused.body.contains(name), "{name} is not among {}", refused.body);
            }
        }
    }
}

/// Checks that a value has the required members of a schema, and no others than the schema allows.
fn fits(document: &Value, schema: &str, value: &Value) {
    let schema = &document["components"]["schemas"][schema];
    let properties = schema["properties"].as_object().unwrap();
    let value = value.as_object().unwrap_or_else(|| panic!("{value} is no {schema}"));
    for required in schema["required"].as_array().into_iter().flatten() {
        assert!(value.contains_key(required.as_str().unwrap()), "{required} is missing");
    }
    for member in value.keys() {
        assert!(properties.contains_key(member), "{member} is not described");
    }
}

#[test]
fn real_answers_have_the_members_that_it_says() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    let document = json(&client.request("GET", "/openapi.json", b"").unwrap().body);
    let settings = br#"{"durability":"disk","values":"any","retention_bytes":1,"retention_seconds":1,"segment_bytes":65536,"record_bytes":9}"#;
    let created = client.request("PUT", "/v1/logs/a", settings).unwrap();
    assert_eq!(created.status, 201, "{}", created.body);
    fits(&document, "Log", &json(&created.body));
    fits(&document, "Settings", &json(&created.body)["settings"]);
    let appended = client.request("POST", "/v1/logs/a/records", b"x").unwrap();
    fits(&document, "Appended", &json(&appended.body));
    let read = "GET /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n";
    client.send(read.as_bytes()).unwrap();
    let range = json(&client.answer().unwrap().body);
    fits(&document, "Range", &range);
    fits(&document, "Record", &range["records"][0]);
    fits(&document, "Names", &json(&client.request("GET", "/v1/logs", b"").unwrap().body));
    fits(&document, "Status", &json(&client.request("GET", "/readyz", b"").unwrap().body));
    let missing = client.request("GET", "/v1/logs/a/records/9", b"").unwrap();
    fits(&document, "Problem", &json(&missing.body));
}

/// The table in `docs/api.md` and the document are generated from the table in the source.
#[test]
fn every_code_is_in_the_table_and_in_the_document() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md");
    let page = std::fs::read_to_string(path).unwrap();
    let rows: Vec<String> = Code::ALL
        .iter()
        .map(|code| {
            let stored = if code.may_be_stored() { "perhaps" } else { "no" };
            format!("| {} | `{code}` | {stored} | {} |\n", code.status(), code.advice())
        })
        .collect();
    let head = "| status | code | stored | what to do |\n| --- | --- | --- | --- |\n";
    let (before, rest) = page.split_once(head).unwrap();
    let end = rest.find("\n\n").map_or(rest.len(), |end| end + 1);
    let real = format!("{before}{head}{}{}", rows.concat(), &rest[end..]);
    if std::env::var_os("MILLSTREAM_NEW_DOCS").is_some() {
        std::fs::write(path, &real).unwrap();
    } else {
        assert!(page == real, "docs/api.md has another table: MILLSTREAM_NEW_DOCS=1 writes it");
    }

    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let document = json(&server.connect().request("GET", "/openapi.json", b"").unwrap().body);
    let told =
        document["components"]["schemas"]["Problem"]["properties"]["code"]["examples"].as_array().unwrap();
    let told: Vec<&str> = told.iter().map(|code| code.as_str().unwrap()).collect();
    assert_eq!(told, Code::ALL.iter().map(|code| code.as_str()).collect::<Vec<_>>());
    let headers = &document["components"]["responses"]["Problem"]["headers"];
    assert!(headers["Retry-After"].is_object() && headers["Allow"].is_object());
}

/// The document allowed what the server refuses: a segment below 4 KiB, other members next to an offset.
#[test]
fn the_document_refuses_what_the_server_refuses() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    client.append(b"x").unwrap();
    let document = json(&client.request("GET", "/openapi.json", b"").unwrap().body);
    let schemas = &document["components"]["schemas"];
    let segment = &schemas["Settings"]["properties"]["segment_bytes"];
    let (least, max) = (segment["minimum"].as_u64().unwrap(), segment["maximum"].as_u64().unwrap());
    // The most is what this server's --memory-bytes allow, rounded up to whole blocks.
    for (name, bytes, status) in
        [("b", least - 1, 400), ("b", least, 201), ("b2", max, 201), ("b3", max + 1, 400)]
    {
        let settings = format!(r#"{{"segment_bytes":{bytes}}}"#);
        let answer = client.request("PUT", &format!("/v1/logs/{name}"), settings.as_bytes()).unwrap();
        assert_eq!(answer.status, status, "{bytes}: {}", answer.body);
    }
    for (schema, method, target, body) in [
        (&schemas["Consume"], "GET", "/", r#"{"offset":0,"x":1}"#),
        (&schemas["Produce"], "POST", "/", r#"{"record":{"value":""},"x":1}"#),
        (&schemas["Produce"]["properties"]["record"], "POST", "/", r#"{"record":{"value":"","x":1}}"#),
        (&schemas["Settings"], "PUT", "/v1/logs/c", r#"{"x":1}"#),
    ] {
        assert_eq!(schema["additionalProperties"], false, "{method} {body}");
        assert_eq!(client.request(method, target, body.as_bytes()).unwrap().status, 400, "{method} {body}");
    }
    assert_eq!(client.request("GET", "/?offset=0", br#"{"offset":"x"}"#).unwrap().status, 400);
    assert_eq!(client.request("GET", "/?offset=0", b"").unwrap().status, 200);
}

/// schemathesis found what the document allowed and the server refused, or the other way round: `null` in place of a
/// setting, whole numbers with a point, a list as a batch, bits in base64 that are left over, times of any form.
#[test]
fn what_schemathesis_found_is_as_the_document_says() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    let document = json(&client.request("GET", "/openapi.json", b"").unwrap().body);
    let schemas = &document["components"]["schemas"];
    client.append(b"x").unwrap();
    for (name, schema) in schemas["Settings"]["properties"].as_object().unwrap() {
        assert_ne!(schema["type"], "null", "{name}");
        let body = format!(r#"{{"{name}":null}}"#);
        let answer = client.request("PUT", "/v1/logs/a", body.as_bytes()).unwrap();
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
    }
    for (method, target, body, status) in [
        ("PUT", "/v1/logs/a", r#"{"retention_bytes":606.0,"segment_bytes":65536.0}"#, 201),
        ("POST", "/v1/logs/default/trim", r#"{"before":0.0}"#, 200),
        ("PUT", "/v1/logs/default/cursors/c", r#"{"offset":1.0}"#, 201),
        ("GET", "/", r#"{"offset":0.0}"#, 200),
        ("GET", "/", r#"{"offset":0.5}"#, 400),
        ("POST", "/v1/logs/default/trim", r#"{"before":0.5}"#, 400),
        ("POST", "/", r#"{"record":{"value":"wbx="}}"#, 400),
        ("POST", "/", r#"{"record":{"value":"wbw="}}"#, 200),
    ] {
        let answer = client.request(method, target, body.as_bytes()).unwrap();
        assert_eq!(answer.status, status, "{method} {target} {body}: {}", answer.body);
    }
    let pattern =
        schemas["Produce"]["properties"]["record"]["properties"]["value"]["pattern"].as_str().unwrap();
    assert!(pattern.contains("[AEIMQUYcgkosw048]="), "{pattern}");

    let records = &document["paths"]["/v1/logs/{log}/records"];
    let batch = &records["post"]["requestBody"]["content"]["application/json"]["schema"]["anyOf"];
    assert_eq!(batch[1]["type"], "array");
    let append =
        "POST /v1/logs/default/records HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    for (list, status) in [("[7]", 200), ("[]", 400)] {
        client.send(format!("{append}Content-Length: {}\r\n\r\n{list}", list.len()).as_bytes()).unwrap();
        assert_eq!(client.answer().unwrap().status, status, "{list}");
    }
    // It was not looked at unless the answer is a live tail.
    client
        .send(b"GET /v1/logs/default/records HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: Jg\r\n\r\n")
        .unwrap();
    assert_eq!(client.answer().unwrap().status, 400);
    for (query, status) in [
        ("since=2026-01-02", 200),
        ("since=2026-01-02T03:04:05Z", 200),
        ("since=18446744073709551615", 200),
        ("since=100000000000", 200),
        ("since=99999999999", 400),
        ("since=100000000", 400),
        ("since=99999999", 200),
        ("since=999999999%20years", 200),
        ("since=yesterday", 400),
        ("wait=1%20ms%202us", 200),
        ("wait=0", 200),
        ("wait=soon", 400),
    ] {
        let answer = client.request("GET", &format!("/v1/logs/default/records?{query}"), b"").unwrap();
        assert_eq!(answer.status, status, "{query}: {}", answer.body);
    }
}

/// The line, further headers and the body of a request that has this number.
type Request<'a> = &'a dyn Fn(u128) -> (String, String, String);

/// The document allowed offsets of any size, and what says twice where to begin.
#[test]
fn the_document_says_which_numbers_and_combinations_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    client.append(b"x").unwrap();
    client.request("PUT", "/v1/logs/a", b"").unwrap();
    let document = json(&client.request("GET", "/openapi.json", b"").unwrap().body);
    let parameter = |path: &str, method: &str, name: &str| {
        let operation = &document["paths"][path];
        let operation = if method.is_empty() { operation } else { &operation[method] };
        let mut parameters = operation["parameters"].as_array().unwrap().iter();
        parameters.find(|parameter| parameter["name"] == name).unwrap().clone()
    };
    let schemas = &document["components"]["schemas"];
    let trim =
        "/paths/~1v1~1logs~1{log}~1trim/post/requestBody/content/application~1json/schema/properties/before";
    let (records, one) = ("/v1/logs/{log}/records", "/v1/logs/{log}/records/{offset}");
    let no_body = String::new;
    let mut ask = |line: &str, more: &str, body: &str| {
        let length = body.len();
        let request =
            format!("{line} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {length}\r\n\r\n{body}");
        client.send(request.as_bytes()).unwrap();
        client.answer().unwrap()
    };
    let producer = |n: u128| format!("Producer-Id: p\r\nProducer-Epoch: 0\r\nProducer-Seq: {n}\r\n");
    let requests: [(Value, Request<'_>); 9] = [
        (parameter("/", "get", "offset")["schema"].clone(), &|n| {
            (format!("GET /?offset={n}"), no_body(), no_body())
        }),
        (parameter(one, "", "offset")["schema"].clone(), &|n| {
            (format!("GET /v1/logs/a/records/{n}"), no_body(), no_body())
        }),
        (parameter(records, "get", "offset")["schema"]["anyOf"][0].clone(), &|n| {
            (format!("GET /v1/logs/a/records?offset={n}"), no_body(), no_body())
        }),
        (parameter(records, "post", "expect")["schema"].clone(), &|n| {
            (format!("POST /v1/logs/a/records?expect={n}"), no_body(), "x".to_owned())
        }),
        (parameter(records, "post", "Producer-Seq")["schema"].clone(), &|n| {
            ("POST /v1/logs/a/records".to_owned(), producer(n), "x".to_owned())
        }),
        (document.pointer(trim).unwrap().clone(), &|n| {
            ("POST /v1/logs/a/trim".to_owned(), no_body(), format!(r#"{{"before":{n}}}"#))
        }),
        (schemas["Settings"]["properties"]["retention_bytes"].clone(), &|n| {
            ("PUT /v1/logs/b".to_owned(), no_body(), format!(r#"{{"retention_bytes":{n}}}"#))
        }),
        (schemas["Settings"]["properties"]["retention_seconds"].clone(), &|n| {
            ("PUT /v1/logs/c".to_owned(), no_body(), format!(r#"{{"retention_seconds":{n}}}"#))
        }),
        (schemas["Settings"]["properties"]["record_bytes"].clone(), &|n| {
            ("PUT /v1/logs/d".to_owned(), no_body(), format!(r#"{{"record_bytes":{n}}}"#))
        }),
    ];
    for (schema, request) in requests {
        let max = schema["maximum"].as_u64().unwrap_or_else(|| panic!("no maximum: {schema}"));
        for (n, refused) in [(u128::from(max), false), (u128::from(max) + 1, true)] {
            let (line, more, body) = request(n);
            let answer = ask(&line, &more, &body);
            assert_eq!(answer.status == 400, refused, "{line} {more} {body}: {}", answer.body);
        }
    }
    let last = parameter(records, "get", "Last-Event-ID")["schema"]["maximum"].as_u64().unwrap();
    let tail = format!("Accept: text/event-stream\r\nLast-Event-ID: {}\r\n", u128::from(last) + 1);
    assert_eq!(ask("GET /v1/logs/a/records", &tail, "").status, 400);

    let bodies = &document["paths"][records]["post"]["requestBody"]["content"];
    for media_type in ["application/x-ndjson", "text/plain", "application/vnd.millstream.frames"] {
        assert_eq!(bodies[media_type]["schema"]["minLength"], 1, "{media_type}");
        let more = format!("Content-Type: {media_type}\r\n");
        assert_eq!(ask("POST /v1/logs/a/records", &more, "").status, 400, "{media_type}");
    }
    let value = &schemas["Produce"]["properties"]["record"]["properties"]["value"];
    assert!(value["pattern"].is_string(), "{value}");
    assert_eq!(ask("POST /", "", r#"{"record":{"value":"x"}}"#).status, 400);

    assert_eq!(ask("GET /v1/logs/a/records?offset=0&since=15m", "", "").status, 400);
    for (name, other) in [("offset", "since"), ("since", "offset")] {
        let told = parameter(records, "get", name)["description"].to_string();
        assert!(told.contains(&format!("not together with {other}")), "{told}");
    }
    assert_eq!(ask("GET /?offset=0", "", r#"{"offset":0}"#).status, 400);
    assert!(document["paths"]["/"]["get"]["description"].to_string().contains("both"));
}
