//! Judging replies: `cargo bench --bench classify`. The figure to hold is 20 microseconds for a reply with
//! the whole catalogue; a line here is all rows of the table, so divide by 194.

use divan::{Bencher, counter::ItemsCount};
use smtp_uplift::{
    proto::reply::{Reply, ReplyLines},
    smarthost::classify::{self, catalogue::Catalogue},
};

fn main() {
    divan::main();
}

fn rows() -> Vec<&'static str> {
    let table = include_str!("../tests/data/replies.tsv");
    table.lines().skip(1).filter_map(|line| line.split('\t').next()).collect()
}

fn replies() -> Vec<Reply> {
    let read = |row: &str| ReplyLines::default().push(row.as_bytes()).ok().flatten();
    rows().into_iter().filter_map(read).collect()
}

#[divan::bench]
fn every_row_as_it_is_pasted(bencher: Bencher<'_, '_>) {
    let (catalogue, rows) = (Catalogue::built_in(), rows());
    bencher.counter(ItemsCount::new(rows.len())).bench(|| {
        for row in &rows {
            divan::black_box(classify::pasted(catalogue, None, row));
        }
    });
}

#[divan::bench]
fn every_row_from_a_socket(bencher: Bencher<'_, '_>) {
    let (catalogue, replies) = (Catalogue::built_in(), replies());
    bencher.counter(ItemsCount::new(replies.len())).bench(|| {
        for reply in &replies {
            divan::black_box(classify::reply(catalogue, None, reply));
        }
    });
}

#[divan::bench]
fn the_longest_row_with_diagnostic_data(bencher: Bencher<'_, '_>) {
    let row = rows().into_iter().max_by_key(|row| row.len()).unwrap_or_default();
    let text = format!(
        "{row} [BeginDiagnosticData]{}[EndDiagnosticData]",
        "0.35250:1F009983, 1.36674:0A000000, ".repeat(20)
    );
    bencher.bench(|| classify::pasted(Catalogue::built_in(), None, divan::black_box(&text)));
}

#[divan::bench]
fn an_unknown_reply(bencher: Bencher<'_, '_>) {
    let text =
        "599 5.9.9 The quick brown fox jumps over the lazy dog, which nobody has seen before";
    bencher.bench(|| classify::pasted(Catalogue::built_in(), None, divan::black_box(text)));
}

#[divan::bench]
fn a_text_of_64_kib(bencher: Bencher<'_, '_>) {
    let text = "550 5.7.1 words ".repeat(4_096);
    bencher.bench(|| classify::pasted(Catalogue::built_in(), None, divan::black_box(&text)));
}

#[divan::bench]
fn reading_the_catalogue(bencher: Bencher<'_, '_>) {
    bencher.bench(|| Catalogue::with_own("", std::path::Path::new("none")));
}
