//! A distance in front of a server: what goes in either direction arrives later, all of it by the same time, so that
//! commands that are sent together travel together. By threads, since tokio's timers count in milliseconds.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use tokio::time::Instant;

/// Puts a server so far away, one way; returns where it is now.
pub fn put(server: SocketAddr, away: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming().map(Result::unwrap) {
            let server = TcpStream::connect(server).unwrap();
            for stream in [&client, &server] {
                stream.set_nodelay(true).unwrap();
            }
            carry(client.try_clone().unwrap(), server.try_clone().unwrap(), away);
            carry(server, client, away);
        }
    });
    address
}

fn carry(mut from: TcpStream, mut to: TcpStream, away: Duration) {
    let (sender, under_way) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut octets = vec![0; 64 * 1024];
        while let Ok(read) = from.read(&mut octets)
            && read > 0
            && sender.send((Instant::now() + away, octets[..read].to_vec())).is_ok()
        {}
    });
    thread::spawn(move || {
        for (arrives, octets) in under_way {
            thread::sleep(arrives.saturating_duration_since(Instant::now()));
            if to.write_all(&octets).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
