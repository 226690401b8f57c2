//! Each program with each of its versions delivers, and what arrives is what it sent.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    haproxy::{ADDRESS, HaProxy},
    needs,
    office::{FROM, LOGIN, Relay, Smarthost},
    programs::{Job, Program, Security},
};

/// Program, listener, what the relay has to see of TLS, and the program's own words for that. Where there is
/// TLS, STARTTLS and the listener's implicit sibling each have their turn.
const DEVICES: &str = "
openssl     lan    TLSv1/ECDHE-RSA-AES256-SHA          -tls1 -cipher DEFAULT@SECLEVEL=0
openssl     lan    TLSv1/AES128-SHA                    -tls1 -cipher AES128-SHA@SECLEVEL=0
openssl     lan    TLSv1.1/AES128-SHA                  -tls1_1 -cipher AES128-SHA@SECLEVEL=0
openssl     lan    TLSv1.2/AES128-SHA                  -tls1_2 -cipher AES128-SHA
openssl     lan    TLSv1.2/AES128-GCM-SHA256           -tls1_2 -cipher AES128-GCM-SHA256
openssl     lan    TLSv1.3/TLS_AES_256_GCM_SHA384      -tls1_3
gnutls-cli  lan    TLSv1/ECDHE-RSA-AES256-SHA          --priority=NORMAL:-VERS-ALL:+VERS-TLS1.0
gnutls-cli  lan    TLSv1.1/AES256-SHA                  --priority=NORMAL:-VERS-ALL:+VERS-TLS1.1:-KX-ALL:+RSA
gnutls-cli  lan    TLSv1.2/AES256-GCM-SHA384           --priority=NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+RSA
gnutls-cli  lan    TLSv1.3/TLS_AES_256_GCM_SHA384      --priority=NORMAL:-VERS-ALL:+VERS-TLS1.3
curl        lan    plain
curl        lan    TLSv1/ECDHE-RSA-AES256-SHA          --tlsv1.0 --tls-max 1.0 --ciphers DEFAULT@SECLEVEL=0
curl        lan    TLSv1.1/AES128-SHA                  --tlsv1.1 --tls-max 1.1 --ciphers AES128-SHA@SECLEVEL=0
curl        lan    TLSv1.2/AES128-GCM-SHA256           --tls-max 1.2 --ciphers AES128-GCM-SHA256
curl        lan    TLSv1.3/TLS_AES_256_GCM_SHA384      --tlsv1.3
curl        login  TLSv1/AES128-SHA                    --tlsv1.0 --tls-max 1.0 --ciphers AES128-SHA@SECLEVEL=0
swaks       lan    plain
swaks       lan    TLSv1/ECDHE-RSA-AES256-SHA          --tls-protocol tlsv1 --tls-cipher DEFAULT@SECLEVEL=0
swaks       lan    TLSv1.1/AES128-SHA                  --tls-protocol tlsv1_1 --tls-cipher AES128-SHA@SECLEVEL=0
swaks       lan    TLSv1.2/AES128-SHA                  --tls-protocol tlsv1_2 --tls-cipher AES128-SHA
swaks       lan    TLSv1.3/TLS_AES_256_GCM_SHA384      --tls-protocol tlsv1_3
swaks       login  TLSv1.2/AES128-GCM-SHA256           --tls-protocol tlsv1_2 --tls-cipher AES128-GCM-SHA256
msmtp       lan    plain
msmtp       lan    TLSv1/ECDHE-RSA-AES256-SHA          --tls-priorities=NORMAL:-VERS-ALL:+VERS-TLS1.0
msmtp       lan    TLSv1.2/AES256-GCM-SHA384           --tls-priorities=NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+RSA
msmtp       lan    TLSv1.3/TLS_AES_256_GCM_SHA384      --tls-priorities=NORMAL:-VERS-ALL:+VERS-TLS1.3
msmtp       login  TLSv1.1/AES256-SHA                  --tls-priorities=NORMAL:-VERS-ALL:+VERS-TLS1.1:-KX-ALL:+RSA
smtplib     lan    plain
smtplib     lan    TLSv1/ECDHE-RSA-AES256-SHA          TLSv1 DEFAULT@SECLEVEL=0
smtplib     lan    TLSv1.1/AES128-SHA                  TLSv1_1 AES128-SHA@SECLEVEL=0
smtplib     lan    TLSv1.2/AES128-SHA                  TLSv1_2 AES128-SHA
smtplib     lan    TLSv1.3/TLS_AES_256_GCM_SHA384      TLSv1_3 DEFAULT
smtplib     login  TLSv1/AES128-SHA                    TLSv1 AES128-SHA@SECLEVEL=0
tlslite     lan    TLSv1.2/AES128-GCM-SHA256           usual TLSv1.2 aes128gcm aead rsa
tlslite     lan    TLSv1/DHE-RSA-AES128-SHA            usual TLSv1 aes128 sha dhe_rsa
tlslite     lan    TLSv1/AES128-SHA                    bare TLSv1 aes128 sha rsa
tlslite     lan    TLSv1.2/AES128-SHA                  bare TLSv1.2 aes128 sha rsa
tlslite     lan    TLSv1/AES256-SHA                    sslv2 TLSv1 aes256 sha rsa
tlslite     old    TLSv1/DES-CBC3-SHA                  usual TLSv1 3des sha rsa
tlslite     old    TLSv1/RC4-SHA                       usual TLSv1 rc4 sha rsa
tlslite     old    TLSv1/RC4-MD5                       bare TLSv1 rc4 md5 rsa
tlslite     old    SSLv3/AES128-SHA                    usual SSLv3 aes128 sha rsa
tlslite     old    SSLv3/DES-CBC3-SHA                  bare SSLv3 3des sha rsa
tlslite     old    SSLv3/RC4-SHA                       usual SSLv3 rc4 sha rsa
tlslite     old    SSLv3/RC4-MD5                       sslv2 SSLv3 rc4 md5 rsa
";

/// These send 5 MB.
const SCANS: &str = "
curl        lan    TLSv1/AES128-SHA                    --tlsv1.0 --tls-max 1.0 --ciphers AES128-SHA@SECLEVEL=0
smtplib     lan    TLSv1.3/TLS_AES_256_GCM_SHA384      TLSv1_3 DEFAULT
";

/// What a listener must not take: a proof, too, that these programs would notice.
const REFUSED: &str = "
tlslite     lan    refused                             usual SSLv3 aes128 sha rsa
tlslite     lan    refused                             usual TLSv1 rc4 sha rsa
";

/// Where all of them connect from.
const OWN: &str = "127.0.0.1";

/// One program with one set of options, at one listener.
#[derive(Clone, Debug)]
struct Device {
    program: Program,
    listener: String,
    security: Security,
    seen: &'static str,
    options: Vec<&'static str>,
    /// The least that its message has.
    octets: usize,
}

struct House {
    /// What stands in front of the relay.
    front: Option<HaProxy>,
    relay: Relay,
    smarthost: Smarthost,
}

const MAILBOX: &str = "password = { file = \"password\" }";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_program_delivers_through_the_relay() {
    let smarthost = Smarthost::start().await;
    let relay = Relay::start(smarthost.port(), smarthost.certificate(), MAILBOX).await;
    every_program_delivers(House { front: None, relay, smarthost }).await;
}

/// The relay judges and names each of them by the address that the balancer tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_program_delivers_through_haproxy_and_is_seen_under_its_own_address() {
    if !needs::met(&[HaProxy::need()], "HAProxy as the load balancer") {
        return;
    }
    let smarthost = Smarthost::start().await;
    let listener = format!("allow = [\"{OWN}\"]\nproxy_protocol_from = [\"{ADDRESS}\"]");
    let (port, certificate) = (smarthost.port(), smarthost.certificate());
    let relay = Relay::start_with(port, certificate, MAILBOX, &listener).await;
    let front = Some(HaProxy::start(&relay, &Relay::LISTENERS));
    every_program_delivers(House { front, relay, smarthost }).await;
}

async fn every_program_delivers(house: House) {
    let house = Arc::new(house);
    let missing: Vec<Program> = Program::ALL
        .into_iter()
        .filter(|program| {
            !needs::met(&[program.need()], &format!("{} as a device", program.name()))
        })
        .collect();
    let mut devices = [table(DEVICES, 0), table(SCANS, 5_000_000), table(REFUSED, 0)].concat();
    devices.retain(|device| !missing.contains(&device.program));
    // The system's OpenSSL takes no SSLv3, RC4 and 3DES.
    devices.retain(|device| cfg!(feature = "vendored") || !device.listener.starts_with("old"));

    // As many at a time as the mailbox may have connections.
    let turns = Arc::new(Semaphore::new(3));
    let mut running = JoinSet::new();
    for (number, device) in devices.iter().cloned().enumerate() {
        let (house, turns) = (Arc::clone(&house), Arc::clone(&turns));
        running.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            let outcome = house.deliver(&device, &format!("copier-{number}@office.example")).await;
            outcome.map_err(|error| format!("{device:?}: {error}\n"))
        });
    }
    let failures: String = running.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{failures}");

    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    for device in &devices {
        *counts.entry(device.metric()).or_default() += 1.0;
    }
    for (metric, count) in counts {
        assert_eq!(house.relay.metric(&metric), count, "{metric}");
    }
}

impl House {
    fn port(&self, listener: &str) -> u16 {
        match &self.front {
            Some(front) => front.port(listener),
            None => self.relay.address(listener).port(),
        }
    }

    async fn deliver(&self, device: &Device, to: &str) -> Result<(), String> {
        let message = message(to, device.octets);
        let login = device.listener.starts_with("login").then_some(LOGIN);
        let job = Job {
            port: self.port(&device.listener),
            security: device.security,
            login,
            from: FROM,
            to,
            message: &message,
            options: &device.options,
            folder: self.relay.folder.path(),
        };
        let sent = device.program.send(&job).await;
        if device.seen == "refused" {
            return if sent.is_err() { Ok(()) } else { Err("was taken".to_owned()) };
        }
        sent?;
        let arrived = self.smarthost.arrived(to).await?;
        let Some(added) = arrived.strip_suffix(&message[..]) else {
            return Err(altered(&message, &arrived));
        };
        let added = String::from_utf8_lossy(added);
        let own = format!(" ([{OWN}])\r\n");
        for stamp in self.smarthost.stamps().iter().chain([&device.stamp(), &own]) {
            if !added.contains(stamp) {
                return Err(format!("no {stamp:?} in {added}"));
            }
        }
        Ok(())
    }
}

impl Device {
    /// What the relay writes about it into the message.
    fn stamp(&self) -> String {
        let login = if self.listener.starts_with("login") { "A" } else { "" };
        let (tls, protocol) = match self.seen.split_once('/') {
            Some((version, cipher)) => {
                (format!(" (version={version} cipher={cipher})\r\n"), "ESMTPS")
            }
            None => (String::new(), "ESMTP"),
        };
        format!(" by relay.example (smtp-uplift)\r\n{tls} with {protocol}{login} id ")
    }

    /// What the relay counts it as.
    fn metric(&self) -> String {
        let Self { listener, seen, .. } = self;
        if *seen == "refused" {
            return format!(
                "tls_handshakes_total{{cipher=\"none\",listener=\"{listener}\",outcome=\"failed\",version=\"none\"}}"
            );
        }
        let version = seen.split('/').next().unwrap();
        format!("messages_received_total{{listener=\"{listener}\",tls=\"{version}\"}}")
    }
}

/// Where what arrived differs, from its end on.
fn altered(message: &[u8], arrived: &[u8]) -> String {
    let pairs = message.iter().rev().zip(arrived.iter().rev());
    let same = pairs.take_while(|(sent, came)| sent == came).count();
    let before = |octets: &[u8]| {
        let end = octets.len() - same;
        octets[end.saturating_sub(80)..end].escape_ascii().to_string()
    };
    let (sent, came) = (before(message), before(arrived));
    format!("altered {same} octets before the end: sent \"{sent}\", arrived \"{came}\"")
}

fn table(text: &'static str, octets: usize) -> Vec<Device> {
    let mut devices = Vec::new();
    for line in text.trim().lines() {
        let mut words = line.split_whitespace();
        let program = Program::named(words.next().unwrap());
        let (listener, seen) = (words.next().unwrap(), words.next().unwrap());
        let options: Vec<_> = words.collect();
        let kinds: &[Security] = match seen {
            "plain" => &[Security::Plain],
            "refused" => &[Security::Implicit],
            _ => &[Security::StartTls, Security::Implicit],
        };
        devices.extend(kinds.iter().map(|&security| {
            let suffix = if security == Security::Implicit { "-tls" } else { "" };
            let listener = format!("{listener}{suffix}");
            Device { program, listener, security, seen, options: options.clone(), octets }
        }));
    }
    devices
}

/// A message with all that is easily damaged, and at least so many octets.
fn message(to: &str, octets: usize) -> Vec<u8> {
    let mut message = format!(
        "From: Kopierer <{FROM}>\r\nTo: {to}\r\nSubject: B\u{fc}ro im dritten Stock,\r\n\tSeite 1\r\n\
         Date: Sun, 22 Nov 2026 10:00:00 +0000\r\nMessage-ID: <{to}>\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\nX-Latin: "
    )
    .into_bytes();
    message.extend_from_slice(
        b"caf\xe9\r\n\r\n.\r\n..\r\n.dot\r\n\r\n  blanks  \r\n\tna\xc3\xafve \xe9\r\n",
    );
    message.extend([b'L'; 998]);
    message.extend_from_slice(b"\r\n");
    while message.len() < octets {
        message.extend_from_slice(
            b".JVBERi0xLjcKJeLjz9MKNSAwIG9iago8PC9UeXBlL1hPYmplY3QvU3VidHlwZS9JbWFnZS9XaWR0\r\n",
        );
    }
    message.extend_from_slice(b"..\r\nlast line\r\n");
    message
}
