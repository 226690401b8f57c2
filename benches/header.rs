//! Editing of a header section: `cargo bench --bench header`. The figure to hold is 10 microseconds between `mailbox`
//! and `keep`, for a message whose senders are rewritten.

use bytes::Bytes;
use divan::Bencher;
use smtp_uplift::{
    policy::{
        Patterns,
        sender::{Rewrite, Rule},
    },
    proto::{
        header::{Gathered, Gatherer},
        path::{Address, ReversePath},
    },
};

const HEAD: &[u8] = b"Received: from copier ([192.0.2.7])\r\n by relay.example.lan (smtp-uplift)\r\n \
    (version=TLSv1 cipher=AES128-SHA)\r\n with ESMTPS id k3v9abcd.1;\r\n Sun, 22 Nov 2026 10:00:00 +0000\r\n";

/// What a copier sends.
const SCAN: &[u8] = b"Date: Sun, 22 Nov 2026 10:00:00 +0000\r\nFrom: \"Copier 3rd floor\" <copier3@example.com>\r\n\
    To: office@example.com,\r\n accounts@example.com\r\nSubject: =?utf-8?B?U2NhbiB2b20gMjIuMTEuMjAyNg==?=\r\n\
    Message-ID: <20261122100000.0001@copier3.example.com>\r\nX-Mailer: Copier 4.1\r\nMIME-Version: 1.0\r\n\
    Content-Type: multipart/mixed;\r\n boundary=\"----=_scan_0001\"\r\nImportance: normal\r\n\r\n";

fn main() {
    divan::main();
}

fn rule(rewrite: Rewrite, send_as: &str) -> Rule {
    Rule {
        rewrite,
        mailbox: "scanner@example.com".to_owned(),
        send_as: Patterns::new(vec!["helpdesk@example.com".to_owned(), send_as.to_owned()]),
        senders: None,
    }
}

/// From the chunk that came to what goes up in place of its header section.
fn bench(bencher: Bencher<'_, '_>, rule: &Rule, fields: usize) {
    let lines = b"X-Scan-Page: 0123456789abcdef\r\n".repeat(fields);
    let chunk = Bytes::from([&lines[..], SCAN].concat());
    let from = Address::parse("copier3@example.com").map(ReversePath::Address).ok();
    let from = from.unwrap_or(ReversePath::Null);
    bencher.bench(|| {
        let Some(Gathered::Whole(section, _)) = Gatherer::default().push(chunk.clone()) else {
            panic!("a whole section")
        };
        (rule.reverse_path(&from), rule.front(&from, HEAD, &section))
    });
}

#[divan::bench]
fn keep(bencher: Bencher<'_, '_>) {
    bench(bencher, &rule(Rewrite::Keep, "x@example.com"), 0);
}

#[divan::bench]
fn mailbox_rewritten(bencher: Bencher<'_, '_>) {
    bench(bencher, &rule(Rewrite::Mailbox, "x@example.com"), 0);
}

#[divan::bench]
fn mailbox_allowed(bencher: Bencher<'_, '_>) {
    bench(bencher, &rule(Rewrite::Mailbox, "*@example.com"), 0);
}

#[divan::bench]
fn keep_100_more_fields(bencher: Bencher<'_, '_>) {
    bench(bencher, &rule(Rewrite::Keep, "x@example.com"), 100);
}

#[divan::bench]
fn mailbox_rewritten_100_more_fields(bencher: Bencher<'_, '_>) {
    bench(bencher, &rule(Rewrite::Mailbox, "x@example.com"), 100);
}
