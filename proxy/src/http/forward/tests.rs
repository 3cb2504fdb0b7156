//! Forwarding of a head (RFC 9110 section 7.6): hop-by-hop fields go, our own come, and only trusted peers
//! are believed about the client.

use super::*;
use crate::http::h1::{Parsed, RequestDecoder, ResponseDecoder};
use crate::http::limits::Limits;
use crate::http::message::Method;
use crate::http::path::Rules;

const LIMITS: Limits = Limits { header_bytes: 64 << 10, fields: 100, uri_bytes: 1024, paths: Rules::KEEP };

fn request_head(fields: &str) -> RequestHead {
    let input = format!("GET / HTTP/1.1\r\nHost: App\r\n{fields}\r\n");
    match RequestDecoder::new().parse(input.as_bytes(), &LIMITS) {
        Ok(Parsed::Head { head, .. }) => head,
        other => panic!("{other:?}"),
    }
}

fn response_head(fields: &str) -> ResponseHead {
    let input = format!("HTTP/1.0 200 OK\r\n{fields}\r\n");
    match ResponseDecoder::new().parse(input.as_bytes(), &Method::Get, &Limits::UPSTREAM) {
        Ok(Parsed::Head { head, .. }) => head,
        other => panic!("{other:?}"),
    }
}

fn origin(is_trusted: bool) -> Origin<'static> {
    Origin {
        client: "::ffff:192.0.2.7".parse().expect("an address"),
        is_trusted,
        scheme: "http",
        identity: None,
        is_early: false,
        underscores: Underscores::DropColliding,
        keeps_request_id: false,
        new_request_id: RequestId::from_bits(0x0123_4567_89ab_cdef),
    }
}

fn shown(fields: &Fields) -> Vec<String> {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    fields.iter().map(|(name, value)| format!("{}: {}", text(name), text(value))).collect()
}

fn forwarded(fields: &str, is_trusted: bool) -> Vec<String> {
    let mut head = request_head(fields);
    request(&mut head, &origin(is_trusted));
    shown(&head.fields)
}

const ADDED: [&str; 5] = [
    "X-Request-Id: 00000000000000000123456789abcdef",
    "X-Forwarded-For: 192.0.2.7",
    "X-Forwarded-Proto: http",
    "X-Forwarded-Host: app",
    "Via: 1.1 sluice",
];

#[test]
fn hop_by_hop_fields_of_a_request_end_here() {
    let sent = forwarded(
        "Connection: close, X-Hop, x-unknown\r\nX-HOP: 1\r\nKeep-Alive: 5\r\nProxy-Connection: a\r\n\
         TE: gzip\r\nUpgrade: websocket\r\n\
         Proxy-Authorization: b\r\nHTTP2-Settings: c\r\nExpect: 100-continue\r\nTrailer: x\r\nAccept: */*\r\n\
         Via: 1.0 other\r\n",
        false,
    );
    let kept = ["Host: App", "Trailer: x", "Accept: */*", "Via: 1.0 other"];
    assert_eq!(sent, [&kept[..], &ADDED[..]].concat());
}

#[test]
fn connection_cannot_hide_what_is_for_the_upstream() {
    let sent = forwarded(
        "Connection: Host, Cookie, authorization, X-Forwarded-For\r\nCookie: a\r\nAuthorization: b\r\n",
        false,
    );
    assert_eq!(sent, [&["Host: App", "Cookie: a", "Authorization: b"][..], &ADDED[..]].concat());
}

#[test]
fn te_keeps_trailers_alone() {
    let sent = forwarded("TE: gzip;q=0.5 , Trailers\r\nConnection: TE\r\n", false);
    assert_eq!(sent.iter().filter(|field| field.starts_with("TE")).collect::<Vec<_>>(), ["TE: trailers"]);
}

#[test]
fn an_untrusted_client_is_not_believed() {
    let sent = forwarded(
        "X-Forwarded-For: 1.1.1.1\r\nx-forwarded-proto: https\r\nX-Forwarded-Host: evil\r\n\
         X-Forwarded-Port: 1\r\n\
         X_Forwarded_For: 2.2.2.2\r\nX-Forwarded_Proto: https\r\nX-Real-IP: 3.3.3.3\r\nX_Real_Ip: 4.4.4.4\r\n\
         Forwarded: for=5.5.5.5\r\n",
        false,
    );
    assert_eq!(sent, [&["Host: App"][..], &ADDED[..]].concat());
}

#[test]
fn a_trusted_proxy_is_believed_and_appended_to() {
    let sent = forwarded(
        "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2, 3.3.3.3\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: front\r\n\
         X_Forwarded_For: 9.9.9.9\r\nForwarded: for=1.1.1.1\r\n",
        true,
    );
    let expected = [
        "Host: App",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: front",
        "Forwarded: for=1.1.1.1",
        ADDED[0],
        "X-Forwarded-For: 1.1.1.1, 2.2.2.2, 3.3.3.3, 192.0.2.7",
        ADDED[4],
    ];
    assert_eq!(sent, expected);
    assert_eq!(forwarded("X-Forwarded-For:\r\n", true), [&["Host: App"][..], &ADDED[..]].concat());
}

#[test]
fn only_who_proved_it_or_is_trusted_says_who_the_client_is() {
    const WRITTEN: &str = "X-Forwarded-Client-Cert: Hash=00\r\nx-forwarded-client-cert: Hash=01\r\n\
        X_Forwarded_Client_Cert: Hash=02\r\n";
    let who = |fields: &str, is_trusted, identity| {
        let mut head = request_head(fields);
        request(&mut head, &Origin { identity, ..origin(is_trusted) });
        let said = |field: &String| field.contains("Hash=");
        shown(&head.fields).into_iter().filter(said).collect::<Vec<_>>()
    };
    assert_eq!(who(WRITTEN, false, None), Vec::<String>::new());
    assert_eq!(
        who(WRITTEN, true, None),
        ["X-Forwarded-Client-Cert: Hash=00", "x-forwarded-client-cert: Hash=01"]
    );
    let hidden = format!("{WRITTEN}Connection: X-Forwarded-Client-Cert\r\n");
    for (fields, is_trusted) in [(WRITTEN, false), (WRITTEN, true), (&hidden, false), (&hidden, true)] {
        assert_eq!(who(fields, is_trusted, Some("Hash=03")), ["X-Forwarded-Client-Cert: Hash=03"]);
        // It was asked, and showed nothing.
        assert_eq!(who(fields, is_trusted, Some("")), Vec::<String>::new());
    }
}

#[test]
fn what_comes_early_says_so_once_whatever_the_client_says() {
    let said = |fields: &str, is_early| {
        let mut head = request_head(fields);
        request(&mut head, &Origin { is_early, ..origin(false) });
        shown(&head.fields)
            .into_iter()
            .filter(|field| field.to_ascii_lowercase().starts_with("early"))
            .collect::<Vec<_>>()
    };
    let hidden = "early-data: 0\r\nEarly_Data: 0\r\nEarly-Data: 1\r\nConnection: Early-Data\r\n";
    for fields in ["", hidden] {
        assert_eq!(said(fields, true), ["Early-Data: 1"]);
    }
    // Of another hop (RFC 8470 §5.1).
    assert_eq!(said("Early-Data: 1\r\n", false), ["Early-Data: 1"]);
}

#[test]
fn a_fit_request_id_is_kept_once() {
    let keeping = Origin { keeps_request_id: true, ..origin(false) };
    let mut head = request_head("X-Request-Id: abc-1\r\nx-request-id: abc-2\r\nX_Request_Id: abc-3\r\n");
    request(&mut head, &keeping);
    assert_eq!(head.request_id(), Some("abc-1"));
    assert_eq!(head.fields.all(b"x-request-id").count(), 1);
    assert!(!head.fields.contains(b"x_request_id"));

    for (fields, origin) in [
        ("X-Request-Id: a b\r\n", keeping),
        ("X-Request-Id: abc-1\r\nx-request-id: abc-2\r\nX_Request_Id: abc-3\r\n", origin(false)),
    ] {
        let mut head = request_head(fields);
        request(&mut head, &origin);
        assert_eq!(head.request_id(), Some("00000000000000000123456789abcdef"));
        assert_eq!(head.fields.all(b"x-request-id").count(), 1);
    }
}

#[test]
fn a_response_has_the_id_of_its_request_once() {
    for fields in ["Server: b\r\n", "X-Request-Id: theirs\r\nServer: b\r\nx-request-id: too\r\n"] {
        let mut head = response_head(fields);
        request_id(&mut head, b"ours");
        assert_eq!(shown(&head.fields), ["Server: b", "X-Request-Id: ours"]);
    }
}

#[test]
fn hop_by_hop_fields_of_a_response_end_here() {
    let mut head = response_head(
        "Connection: X-Hop, Set-Cookie, keep-alive\r\nx-hop: 1\r\nKeep-Alive: 5\r\n\
         Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\n\
         Set-Cookie: a\r\nContent-Length: 3\r\nServer: b\r\n",
    );
    response(&mut head);
    assert_eq!(shown(&head.fields), ["Set-Cookie: a", "Content-Length: 3", "Server: b", "Via: 1.0 sluice"]);
}

#[test]
fn a_response_without_a_date_gets_that_of_its_arrival() {
    let mut head = response_head("Server: b\r\n");
    date(&mut head, || 784_111_777);
    assert_eq!(shown(&head.fields), ["Server: b", "Date: Sun, 06 Nov 1994 08:49:37 GMT"]);
    date(&mut head, || unreachable!("it has one"));
    let mut head = response_head("dATE: whenever\r\n");
    date(&mut head, || unreachable!("the origin's own stays"));
    assert_eq!(shown(&head.fields), ["dATE: whenever"]);
}

#[test]
fn many_connection_options_are_found() {
    let options: Vec<String> = (0..2000).rev().map(|number| format!("x-{number}")).collect();
    let fields = format!("Connection: {}\r\nX-0: a\r\nX-1999: b\r\nX-2000: c\r\n", options.join(","));
    let sent = forwarded(&fields, false);
    assert_eq!(sent, [&["Host: App", "X-2000: c"][..], &ADDED[..]].concat());
}

#[test]
fn trailers_carry_no_framing_or_authority() {
    let mut fields = Fields::new();
    for name in [
        "Content-Length",
        "transfer-encoding",
        "Host",
        "Set-Cookie",
        "X-Forwarded-For",
        "X-Request-Id",
        "Trailer",
        "X-Sum",
    ] {
        fields.push(name.as_bytes(), b"1");
    }
    trailers(&mut fields);
    assert_eq!(shown(&fields), ["X-Sum: 1"]);
}

#[test]
fn no_program_takes_a_client_s_field_for_the_address_of_its_proxy() {
    let sent = forwarded("Proxy: http://evil:1\r\npROXY: http://evil:2\r\nAccept: */*\r\n", false);
    assert_eq!(sent, [&["Host: App", "Accept: */*"][..], &ADDED[..]].concat());
    assert_eq!(forwarded("Proxy: a\r\n", true), [&["Host: App"][..], &ADDED[..]].concat());
    let mut fields = Fields::new();
    fields.push(b"proxy", b"a");
    trailers(&mut fields);
    assert_eq!(shown(&fields), [""; 0]);
}

#[test]
fn a_client_cannot_spell_our_fields_in_another_way() {
    let written = "X_Forwarded-Host: a\r\nX.Forwarded.For: b\r\nTransfer_Encoding: chunked\r\nTe_: c\r\n\
        X_User: d\r\nx-user: e\r\nX_Solo: f\r\nEarly_Data: g\r\n";
    let sent = |rule, is_early| {
        let mut head = request_head(written);
        request(&mut head, &Origin { underscores: rule, is_early, ..origin(false) });
        let all = shown(&head.fields);
        let theirs = all.iter().filter_map(|field| field.split_once(": ").map(|(_, value)| value));
        theirs.filter(|value| value.len() == 1 || *value == "chunked").collect::<String>()
    };
    assert_eq!(sent(Underscores::DropColliding, false), "cefg");
    assert_eq!(sent(Underscores::DropColliding, true), "cef1");
    assert_eq!(sent(Underscores::Drop, false), "e");
    assert_eq!(sent(Underscores::Keep, false), "abchunkedcdefg");
}
