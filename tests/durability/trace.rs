//! What `strace -f -y` has written down, and the judgement on it: was everything on disk that a device was promised?

use std::collections::HashMap;

/// A call of the system.
#[derive(Debug)]
pub(crate) struct Call {
    name: String,
    /// As strace shows them.
    arguments: String,
    result: String,
    /// The line of its begin.
    began: usize,
    /// The line of its end.
    ended: usize,
}

/// Reads a trace. A call that others come between stands in two lines.
pub(crate) fn parse(text: &str) -> Vec<Call> {
    let mut begun: HashMap<&str, (usize, String)> = HashMap::new();
    let mut calls = Vec::new();
    for (line, text) in text.lines().enumerate() {
        let Some((process, rest)) = text.trim_start().split_once(' ') else { continue };
        let rest = rest.trim_start();
        let (began, whole) = if let Some(resumed) = rest.strip_prefix("<... ") {
            let (_, tail) = resumed.split_once(" resumed>").unwrap_or(("", ""));
            let Some((began, head)) = begun.remove(process) else { continue };
            (began, head + tail)
        } else if let Some(head) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(process, (line, head.to_owned()));
            continue;
        } else {
            (line, rest.to_owned())
        };
        // Signals and ends have no result.
        let Some((call, result)) = whole.rsplit_once(" = ") else { continue };
        let Some((name, arguments)) = call.split_once('(') else { continue };
        let arguments = arguments.trim_end();
        calls.push(Call {
            name: name.to_owned(),
            arguments: arguments.strip_suffix(')').unwrap_or(arguments).to_owned(),
            result: result.to_owned(),
            began,
            ended: line,
        });
    }
    calls
}

impl Call {
    /// The path of the file that it is about, by its descriptor.
    fn file(&self) -> &str {
        let found = self.arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
        found.map_or("", |(path, _)| path)
    }

    fn is_write_to(&self, end: &str) -> bool {
        ["write", "pwrite64", "writev"].contains(&&*self.name) && self.file().ends_with(end)
    }

    fn is_sync_of(&self, end: &str) -> bool {
        ["fsync", "fdatasync"].contains(&&*self.name)
            && self.file().ends_with(end)
            && self.result == "0"
    }

    /// Whether it says so to whoever is at the other end of a socket.
    fn says(&self, words: &str) -> bool {
        let file = self.file();
        ["sendto", "sendmsg", "write", "writev"].contains(&&*self.name)
            && (file.starts_with("socket:") || file.starts_with("TCP"))
            && self.arguments.contains(words)
    }

    fn names(&self, id: &str) -> bool {
        let behind = |(at, _): (usize, &str)| self.arguments[at + id.len()..].chars().next();
        // A longer id may begin with this one.
        self.arguments
            .match_indices(id)
            .any(|found| behind(found).is_none_or(|next| !next.is_ascii_digit()))
    }
}

/// Whether all of a message was synced, in the right order, when its device heard `250 2.0.0 queued`.
pub(crate) fn judge(calls: &[Call], id: &str, is_large: bool) -> Result<(), String> {
    let find = |what: &str, after: usize, wanted: &dyn Fn(&Call) -> bool| {
        calls
            .iter()
            .find(|call| call.began > after && wanted(call))
            .ok_or_else(|| format!("{id}: no {what} from line {} on", after + 1))
    };
    let words = format!("250 2.0.0 queued, id {id}\\r\\n");
    let told = find("answer", 0, &|call| call.says(&words))?;
    let mut after = 0;
    if is_large {
        let incoming = format!("/incoming/{id}");
        let written = calls.iter().rfind(|call| call.is_write_to(&incoming));
        let written = written.ok_or_else(|| format!("{id}: no file"))?;
        let synced = find("sync of its file", written.ended, &|call| call.is_sync_of(&incoming))?;
        let renamed = find("rename", synced.ended, &|call| {
            call.name.starts_with("rename") && call.names(&incoming) && call.result == "0"
        })?;
        let place = renamed.arguments.rsplit_once("/bodies/").map_or("", |(_, place)| place);
        let folder = format!("/bodies/{}", place.split('/').next().unwrap_or_default());
        let in_folder =
            find("sync of its folder", renamed.ended, &|call| call.is_sync_of(&folder))?;
        let made = calls.iter().find(|call| {
            call.name.starts_with("mkdir")
                && call.arguments.contains(&format!("{folder}\""))
                && call.result == "0"
        });
        if let Some(made) = made {
            let above =
                find("sync of bodies/", made.ended, &|call| call.is_sync_of("/spool/bodies"))?;
            if above.ended > renamed.began {
                return Err(format!("{id}: its folder was synced into bodies/ after the rename"));
            }
        }
        after = in_folder.ended;
    }
    let log = "/queue.db-wal";
    let row = calls.iter().find(|call| call.is_write_to(log) && call.names(id));
    let row = row.ok_or_else(|| format!("{id}: no row in the log"))?;
    if is_large && row.began < after {
        return Err(format!("{id}: its row was written before its file was at its place"));
    }
    let synced = find("sync of the log", row.ended, &|call| call.is_sync_of(log))?;
    if synced.ended > told.began {
        return Err(format!(
            "{id}: the device was told in line {}, and the log synced in line {}",
            told.began + 1,
            synced.ended + 1
        ));
    }
    Ok(())
}

/// A good one, of a large message; 11 and 12 are threads.
const GOOD: &str = r#"11  writev(16<socket:[7]>, [{iov_base="354 start\r\n", iov_len=11}], 1) = 11
12  write(17</s/spool/incoming/k3.1>, "Subject: x\r\n", 12) = 12
12  fsync(17</s/spool/incoming/k3.1> <unfinished ...>
11  write(2</s/log>, "queue.db-wal k3.1 = 250 2.0.0 queued, id k3.1\r\n", 46) = 46
12  <... fsync resumed>)              = 0
12  mkdir("/s/spool/bodies/e7", 0777) = 0
12  fsync(18</s/spool/bodies>)        = 0
12  rename("/s/spool/incoming/k3.1", "/s/spool/bodies/e7/k3.1") = 0
12  fsync(18</s/spool/bodies/e7>)     = 0
12  pwrite64(14</s/spool/queue.db-wal>, "\r\0k3.12ready) = 5", 17, 24) = 17
12  pwrite64(14</s/spool/queue.db-wal>, "\r\0k3.1ready) = 5", 16, 41 <unfinished ...>
11  --- SIGHUP {si_signo=SIGHUP} ---
12  <... pwrite64 resumed>)           = 16
12  fdatasync(14</s/spool/queue.db-wal> <unfinished ...>
11  writev(19<socket:[8]>, [{iov_base="250 2.1.0 ok\r\n", iov_len=14}], 1) = 14
12  <... fdatasync resumed>)          = 0
11  writev(16<socket:[7]>, [{iov_base="250 2.0.0 queued, id k3.1\r\n", iov_len=27}], 1) = 27
11  +++ exited with 0 +++
"#;

/// The good trace with its line `from` (from 1 on) moved in front of line `to`, or left out.
fn doctored(from: usize, to: Option<usize>) -> String {
    let mut lines: Vec<_> = GOOD.lines().collect();
    let line = lines.remove(from - 1);
    if let Some(to) = to {
        lines.insert(if to > from { to - 2 } else { to - 1 }, line);
    }
    lines.join("\n")
}

#[test]
fn a_good_trace_is_good() {
    let calls = parse(GOOD);
    assert_eq!(calls.len(), 13);
    assert_eq!(judge(&calls, "k3.1", true), Ok(()));
    assert_eq!(judge(&calls, "k3.1", false), Ok(()));
}

#[test]
fn what_is_missing_or_late_is_found() {
    let verdict = |trace: String, large: bool| judge(&parse(&trace), "k3.1", large).unwrap_err();
    for (from, to, complaint) in [
        (3, None, "no sync of its file"),
        (3, Some(2), "no sync of its file"),
        (7, None, "no sync of bodies/"),
        (7, Some(9), "after the rename"),
        (8, None, "no rename"),
        (8, Some(5), "no rename"),
        (9, None, "no sync of its folder"),
        (9, Some(8), "no sync of its folder"),
        (9, Some(12), "before its file was at its place"),
    ] {
        let said = verdict(doctored(from, to), true);
        assert!(said.contains(complaint), "{from} to {to:?}: {said}");
    }
    for (from, to, complaint) in [
        (11, None, "no row"),
        (14, None, "no sync of the log"),
        (14, Some(11), "no sync of the log"),
        (17, None, "no answer"),
        (17, Some(16), "told in line 16, and the log synced in line 17"),
    ] {
        let said = verdict(doctored(from, to), false);
        assert!(said.contains(complaint), "{from} to {to:?}: {said}");
    }
    let failed = GOOD.replace(
        "<... fdatasync resumed>)          = 0",
        "<... fdatasync resumed>) = -1 EIO (Input/output error)",
    );
    assert!(verdict(failed, false).contains("no sync of the log"));
}
