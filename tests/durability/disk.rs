//! A disk that is full and has room again, and folders that are no place for a spool.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use smtp_uplift::{sandbox::device::Device, spool::queue::State};
use tokio::time::{Instant, sleep};

use crate::{
    book::{Book, LARGE, SMALL},
    common::{KEEP, Plan, SPOOL},
    needs::{self, Need},
    relay::{House, PATIENCE, PROGRAM, Relay},
};

/// Whether disks can be mounted: by root, where the system lets root do it (not in every container).
fn can_mount(what: &str) -> bool {
    let tool = |name: &str, otherwise| Need { probe: format!("command -v {name}"), otherwise };
    let tools = [
        tool("unshare", "unshare (apt-get install util-linux)"),
        tool("mount", "mount (apt-get install mount)"),
    ];
    let allowed = Need {
        probe: "unshare -m mount -t tmpfs tmpfs /mnt".to_owned(),
        otherwise: "root who may mount a disk of memory",
    };
    needs::met(&tools, what) && needs::allowed(&allowed, what)
}

/// A relay in a room of its own, where `mount` is run first; what it mounts is gone when the relay is.
fn mounted(house: &House, mount: &str) -> Command {
    fs::create_dir_all(&house.spool).unwrap();
    let mut command = Command::new("unshare");
    let line = format!("set -e; {mount}; exec \"$0\" run --config \"$2\"");
    command.args(["-m", "sh", "-c", &line, PROGRAM]).arg(&house.spool).arg(&house.config);
    command
}

/// A small disk, of memory, for the spool.
fn small_disk(house: &House) -> Command {
    mounted(house, "mount -t tmpfs -o size=16m,mode=0700 tmpfs \"$1\"")
}

/// The spool as a relay sees it.
fn seen_by(relay: &Relay, house: &House) -> PathBuf {
    let inside = house.spool.strip_prefix("/").unwrap();
    Path::new(&format!("/proc/{}/root", relay.pid())).join(inside)
}

/// Fills a disk to its last octet.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler");
    let mut file = File::create(&path).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![b'x'; size]).is_ok() {}
    }
    // A failed write may have left less than a page.
    let mut end = OpenOptions::new().append(true).open(&path).unwrap();
    while end.write_all(b"x").is_ok() {}
    path
}

async fn device(house: &House) -> Device {
    let mut device = Device::connect(house.address).await.unwrap();
    device.say("EHLO copier").await.unwrap();
    device
}

async fn becomes(relay: &Relay, ready: bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let (is_ready, words) = relay.is_ready().await;
        if is_ready == ready {
            return;
        }
        assert!(Instant::now() < end, "/readyz still says {words:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_heals() {
    if !can_mount("a full disk") {
        return;
    }
    let house = House::build(Plan { delivery: SPOOL, ..Plan::default() }).await;
    house.sandbox.refuse(true);
    let relay = Relay::start(small_disk(&house)).ready().await;
    let spool = seen_by(&relay, &house);
    let book = Arc::new(Book::default());
    let mut copier = device(&house).await;
    // The queue fills its disk, up to what it leaves free.
    let refusal = loop {
        let said = book.send(&mut copier, "office@example.com", LARGE).await.unwrap();
        if !said.starts_with("250 2.0.0 queued, ") {
            break said;
        }
    };
    assert_eq!(refusal, "452 4.3.1 the relay's spool is full; try again later");
    assert!(book.answered() > 10);
    // Somebody else takes the rest: no write succeeds any more, before the spool has looked at its disk and after.
    let filler = fill(&spool);
    for _ in 0..30 {
        for size in [SMALL, LARGE] {
            let said = book.send(&mut copier, "office@example.com", size).await.unwrap();
            assert!(said.starts_with("452 4.3.1 the relay's spool "), "{said}");
        }
        sleep(Duration::from_millis(50)).await;
    }
    becomes(&relay, false).await;
    assert!(!relay.is_ready().await.0);
    house.sandbox.refuse(false);
    fs::remove_file(filler).unwrap();
    becomes(&relay, true).await;
    assert!(relay.is_ready().await.0, "ready once and for all");
    book.settle_with(&house, &relay).await;
    let said = book.send(&mut copier, "office@example.com", SMALL).await.unwrap();
    assert!(said.starts_with("250 2.0.0 queued, "), "{said}");
    book.settle_with(&house, &relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_a_delivery_is_written_down_when_there_is_room() {
    if !can_mount("a disk that is full at the end of a delivery") {
        return;
    }
    let house = House::build(Plan { delivery: SPOOL, ..Plan::default() }).await;
    let relay = Relay::start(small_disk(&house)).ready().await;
    let spool = seen_by(&relay, &house);
    let book = Book::default();
    let said = book.send(&mut device(&house).await, "slow-dot-2@example.com", SMALL).await.unwrap();
    assert!(said.starts_with("250 2.0.0 queued, "), "{said}");
    while relay.spool().await != [(State::Leased, 1)] {
        sleep(Duration::from_millis(5)).await;
    }
    let filler = fill(&spool);
    house.sandbox.delivered(1).await;
    // The answer has come and cannot be written down.
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        assert_eq!(relay.spool().await, [(State::Leased, 1)]);
        sleep(Duration::from_millis(100)).await;
    }
    fs::remove_file(filler).unwrap();
    book.settle_with(&house, &relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_disk_a_smarthost_that_is_there_still_gets_mail() {
    if !can_mount("a full disk and a smarthost that is there") {
        return;
    }
    let delivery = format!("{KEEP}\ndevice_patience = \"2s\"");
    let house = House::build(Plan { delivery: &delivery, ..Plan::default() }).await;
    let relay = Relay::start(small_disk(&house)).ready().await;
    let spool = seen_by(&relay, &house);
    let book = Book::default();
    let mut copier = device(&house).await;
    // Before the spool has looked at its disk again: the write itself fails.
    house.sandbox.refuse(true);
    house.sandbox.cut();
    assert!(relay.is_ready().await.0);
    let filler = fill(&spool);
    let said = book.send(&mut copier, "office@example.com", SMALL).await.unwrap();
    assert!(said.starts_with("451 4."), "{said}");
    house.sandbox.refuse(false);
    becomes(&relay, false).await;
    for size in [SMALL, LARGE] {
        let said = book.send(&mut copier, "office@example.com", size).await.unwrap();
        assert!(said.starts_with("250 2.0.0 ok, id "), "{said}");
    }
    house.sandbox.refuse(true);
    house.sandbox.cut();
    for size in [SMALL, LARGE] {
        let said = book.send(&mut copier, "office@example.com", size).await.unwrap();
        assert!(said.starts_with("451 4.") || said.starts_with("452 4.3.1 "), "{said}");
    }
    fs::remove_file(filler).unwrap();
    // Nobody sends anything, and it heals all the same.
    becomes(&relay, true).await;
    let end = Instant::now() + Duration::from_millis(1_500);
    while Instant::now() < end {
        assert_eq!(relay.is_ready().await, (true, "ready".to_owned()));
        sleep(Duration::from_millis(100)).await;
    }
    let said = book.send(&mut copier, "office@example.com", LARGE).await.unwrap();
    assert!(said.starts_with("250 2.0.0 queued, id "), "{said}");
    house.sandbox.refuse(false);
    book.settle_with(&house, &relay).await;
    relay.stop().await;
}

/// How a program ends that does not start: its exit code and its last words.
fn refusal(mut command: Command) -> (i32, String) {
    let output = command.env("NO_COLOR", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), said.lines().last().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_cannot_be_written_is_refused() {
    if !can_mount("a disk that cannot be written") {
        return;
    }
    let house = House::build(Plan { delivery: SPOOL, ..Plan::default() }).await;
    // One that was in use until somebody has mounted its disk again, and one that never was.
    for used in [false, true] {
        if used {
            house.start().ready().await.stop().await;
        }
        let read_only = "mount --bind \"$1\" \"$1\"; mount -o remount,ro,bind \"$1\"";
        let (code, said) = refusal(mounted(&house, read_only));
        assert_eq!(code, 78, "{said}");
        let spool = house.spool.display().to_string();
        assert!(said.starts_with("smtp-uplift: spool: the spool cannot use "), "{said}");
        assert!(said.contains(&spool) && said.contains("ead-only file system"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_somebody_else_or_is_a_file_is_refused() {
    let house = House::build(Plan { delivery: SPOOL, ..Plan::default() }).await;
    fs::create_dir_all(house.spool.parent().unwrap()).unwrap();
    let spool = house.spool.display().to_string();
    fs::write(&house.spool, "").unwrap();
    let (code, said) = refusal(house.command());
    assert_eq!(code, 78, "{said}");
    assert!(said.contains(&format!("spool.directory: {spool} is no folder")), "{said}");
    fs::remove_file(&house.spool).unwrap();
    let root = Need { probe: "test $(id -u) = 0".to_owned(), otherwise: "root" };
    if !needs::allowed(&root, "a spool of somebody else's") {
        return;
    }
    fs::create_dir(&house.spool).unwrap();
    chown(&house.spool, Some(12345), None).unwrap();
    let (code, said) = refusal(house.command());
    assert_eq!(code, 78, "{said}");
    let whose = format!("{spool} belongs to user 12345 and this program runs as user 0");
    assert!(said.contains(&whose), "{said}");
}
