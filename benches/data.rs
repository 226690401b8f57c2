//! Scan of mail data: `cargo bench --bench data`. The figures to hold are 2 GB/s or more for
//! well-formed lines of 76 octets on one core, and no allocation for a chunk.

use bytes::{Bytes, BytesMut};
use divan::{AllocProfiler, Bencher, counter::BytesCount};
use futures_util::{FutureExt as _, StreamExt as _};
use smtp_uplift::{
    codec::{
        data::{DataScanner, Scanned},
        server::ServerCodec,
    },
    proto::limits::LineEndings,
};
use tokio_util::codec::FramedRead;

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

const CHUNK: usize = 64 * 1024;

fn main() {
    divan::main();
}

fn chunk(line: &[u8]) -> BytesMut {
    BytesMut::from(&line.repeat(CHUNK / line.len())[..])
}

fn bench(bencher: Bencher<'_, '_>, line: &[u8]) {
    let wire = chunk(line);
    let mut scanner = DataScanner::new(LineEndings::Normalise);
    bencher.counter(BytesCount::new(wire.len())).with_inputs(|| shared(&wire)).bench_local_values(
        |mut src| {
            let Some(Scanned::Data(data)) = scanner.scan(&mut src) else { panic!("no data") };
            (data, src)
        },
    );
}

/// A read buffer as it is in the middle of a message: already split once, so that splitting it again
/// only counts references.
fn shared(wire: &BytesMut) -> BytesMut {
    let mut src = BytesMut::with_capacity(wire.len() + 1);
    src.extend_from_slice(b"x");
    let first: Bytes = src.split().freeze();
    src.extend_from_slice(wire);
    drop(first);
    src
}

/// A message of 4 MiB as its session reads it: what reading costs besides scanning.
#[divan::bench]
fn read_by_the_session(bencher: Bencher<'_, '_>) {
    let wire = [&[b'A'; 76][..], b"\r\n"].concat().repeat(4 * 1024 * 1024 / 78);
    bencher.counter(BytesCount::new(wire.len())).bench_local(|| {
        let mut codec = ServerCodec::new();
        codec.start_data(LineEndings::Normalise);
        let mut framed = FramedRead::with_capacity(&wire[..], codec, 1024);
        while let Some(Some(item)) = framed.next().now_or_never() {
            divan::black_box(item.is_ok());
        }
    });
}

#[divan::bench]
fn base64_lines_of_76(bencher: Bencher<'_, '_>) {
    bench(bencher, &[&[b'A'; 76][..], b"\r\n"].concat());
}

#[divan::bench]
fn lines_of_990(bencher: Bencher<'_, '_>) {
    bench(bencher, &[&[b'A'; 990][..], b"\r\n"].concat());
}

#[divan::bench]
fn stuffed_lines(bencher: Bencher<'_, '_>) {
    bench(bencher, &[b"..", &[b'A'; 74][..], b"\r\n"].concat());
}

#[divan::bench]
fn bare_line_feeds_mended(bencher: Bencher<'_, '_>) {
    bench(bencher, &[&[b'A'; 76][..], b"\n"].concat());
}
