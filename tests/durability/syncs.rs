//! Each 250 comes after its syncs. A kill cannot show that, for the system keeps what was written; a trace can.

use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

use smtp_uplift::sandbox::device::Device;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    book::{Book, LARGE, SMALL},
    common::{Plan, SPOOL},
    needs::{self, Need},
    relay::{House, PATIENCE, PROGRAM, Relay},
    trace::{judge, parse},
};

const CALLS: &str = "trace=fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,write,pwrite64,sendto,sendmsg,writev";
const DEVICES: usize = 6;
const EACH: usize = 6;

/// Strace as a grandchild, so that the program is our child as ever. A page of the database has to fit in, to see
/// whose row it holds.
fn traced(house: &House, file: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-y", "-s", "4200", "-e", CALLS, "-o"]).arg(file);
    command.arg(PROGRAM).args(["run", "--config"]).arg(&house.config);
    command
}

/// The trace, once strace has written its end.
async fn whole(file: &Path) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let text = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
        if text.trim_end().ends_with("+++ exited with 0 +++") {
            return text;
        }
        assert!(Instant::now() < end, "strace comes to no end");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sync_comes_before_its_250() {
    let strace = Need {
        probe: "strace -D -f -o /dev/null true".to_owned(),
        otherwise: "strace that may trace (apt-get install strace)",
    };
    if !needs::met(&[strace], "syncs before their answers") {
        return;
    }
    let house = House::build(Plan { delivery: SPOOL, ..Plan::default() }).await;
    let file = house.spool.with_file_name("trace");
    fs::create_dir(file.parent().unwrap()).unwrap();
    let relay = Relay::start(traced(&house, &file)).ready().await;
    let book = Arc::new(Book::default());
    let mut devices = JoinSet::new();
    for place in 0..DEVICES {
        let (book, address) = (Arc::clone(&book), house.address);
        devices.spawn(async move {
            let mut device = Device::connect(address).await.unwrap();
            device.say("EHLO copier").await.unwrap();
            let mut answers = Vec::new();
            for time in 0..EACH {
                let is_large = (place + time) % 3 == 0;
                let size = if is_large { LARGE } else { SMALL };
                let said = book.send(&mut device, "office@example.com", size).await.unwrap();
                let id = said.strip_prefix("250 2.0.0 queued, id ").unwrap().to_owned();
                answers.push((id, is_large));
            }
            answers
        });
    }
    let answers = devices.join_all().await.concat();
    book.settle(&house).await;
    relay.stop().await;
    let calls = parse(&whole(&file).await);
    assert_eq!(answers.len(), DEVICES * EACH);
    for (id, is_large) in answers {
        judge(&calls, &id, is_large)
            .unwrap_or_else(|wrong| panic!("{wrong}; {} calls", calls.len()));
    }
}
