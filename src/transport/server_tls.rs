//! TLS with devices, down to SSLv3, by OpenSSL: no other library still takes these versions.

use std::{pin::Pin, sync::OnceLock};

use openssl::{
    bn::BigNum,
    dh::Dh,
    error::ErrorStack,
    ex_data::Index,
    provider::Provider,
    ssl::{
        self, ClientHelloResponse, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode,
        SslOptions, SslRef, SslSessionCacheMode, SslVersion,
    },
};
use thiserror::Error;
use tokio_openssl::SslStream;

use super::{
    certificate::Identity,
    device_tls::DeviceTls,
    stream::{BoxIo, TlsInfo},
};
use crate::policy::{ClientHello, TlsProfile, TlsVersion};

/// ECDHE with AES-GCM first; forward secrecy and AEAD only.
const MODERN: &str = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:!aNULL:!eNULL";
/// RSA key exchange goes before DHE: some old devices offer both and fail at a group of 2,048 bits.
const LEGACY: &str = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:ECDHE+AES:kRSA+AESGCM:kRSA+AES:DHE+AES:\
                      !aNULL:!eNULL:!PSK:!SRP:@SECLEVEL=0";
/// RC4 last.
const ANCIENT: &str = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:ECDHE+AES:kRSA+AESGCM:kRSA+AES:DHE+AES:\
                       ECDHE+3DES:kRSA+3DES:DHE+3DES:ECDHE+RC4:kRSA+RC4:!aNULL:!eNULL:!PSK:!SRP:@SECLEVEL=0";

/// What each profile claims: a version, and a suite whose name tells the key exchange.
const PROMISES: [(TlsProfile, SslVersion, &str); 16] = [
    (TlsProfile::Modern, SslVersion::TLS1_3, "TLS_AES_256_GCM_SHA384"),
    (TlsProfile::Modern, SslVersion::TLS1_2, "ECDHE-RSA-AES128-GCM-SHA256"),
    (TlsProfile::Modern, SslVersion::TLS1_2, "DHE-RSA-AES128-GCM-SHA256"),
    (TlsProfile::Legacy, SslVersion::TLS1_2, "ECDHE-RSA-AES128-SHA"),
    (TlsProfile::Legacy, SslVersion::TLS1_2, "AES128-SHA"),
    (TlsProfile::Legacy, SslVersion::TLS1_2, "AES128-GCM-SHA256"),
    (TlsProfile::Legacy, SslVersion::TLS1_1, "ECDHE-RSA-AES128-SHA"),
    (TlsProfile::Legacy, SslVersion::TLS1_1, "AES128-SHA"),
    (TlsProfile::Legacy, SslVersion::TLS1, "ECDHE-RSA-AES256-SHA"),
    (TlsProfile::Legacy, SslVersion::TLS1, "AES256-SHA"),
    (TlsProfile::Legacy, SslVersion::TLS1, "DHE-RSA-AES128-SHA"),
    (TlsProfile::Ancient, SslVersion::TLS1, "DES-CBC3-SHA"),
    (TlsProfile::Ancient, SslVersion::TLS1, "RC4-SHA"),
    (TlsProfile::Ancient, SslVersion::TLS1, "RC4-MD5"),
    (TlsProfile::Ancient, SslVersion::SSL3, "AES128-SHA"),
    (TlsProfile::Ancient, SslVersion::SSL3, "DES-CBC3-SHA"),
];

/// A listener's side of TLS.
#[derive(Clone)]
pub struct ServerTls {
    context: SslContext,
    /// What it promises.
    profile: TlsProfile,
}

/// What a server takes.
struct Settings {
    oldest: SslVersion,
    newest: SslVersion,
    ciphers: &'static str,
    /// As OpenSSL counts them; `None` is the library's own.
    security_level: Option<u32>,
}

/// Why a listener cannot keep its promise.
#[derive(Debug, Error)]
pub enum ServerTlsError {
    /// OpenSSL does not take the settings.
    #[error("OpenSSL does not take the settings of profile {0}: {1}")]
    Settings(TlsProfile, ErrorStack),
    /// A version or suite of the profile does not work.
    #[error(
        "profile {profile} promises {version} with {suite}, which does not work here: {reason}"
    )]
    Promise {
        /// The profile.
        profile: TlsProfile,
        /// The version.
        version: String,
        /// The suite.
        suite: &'static str,
        /// Why, with the next step.
        reason: String,
    },
}

/// A handshake that failed, with what the device offered.
#[derive(Debug, Error)]
#[error("{reason}; the device offered {}", offered.as_ref().map_or_else(|| "nothing that is TLS".to_owned(), ToString::to_string))]
pub struct HandshakeFault {
    /// What OpenSSL said.
    pub reason: String,
    /// The device closed before it had said anything: a probe.
    pub silent: bool,
    /// The device's ClientHello, if one came.
    pub offered: Option<ClientHello>,
}

/// A handshake that came about.
pub struct Accepted {
    /// What the device sends, and what is sent to it, in the clear.
    pub io: BoxIo,
    /// What was agreed on.
    pub info: TlsInfo,
    /// What the device offered.
    pub offered: Option<ClientHello>,
}

impl ServerTls {
    /// Settings for a profile.
    pub fn new(profile: TlsProfile, identity: &Identity) -> Result<Self, ServerTlsError> {
        load_legacy_provider();
        let context = context(&Settings::of(profile), identity)
            .map_err(|error| ServerTlsError::Settings(profile, error))?;
        Ok(Self { context, profile })
    }

    /// A server that time has passed by, to rehearse against: from TLS 1.0 to `newest` with `ciphers` only. It
    /// promises nothing.
    pub fn outdated(
        newest: SslVersion,
        ciphers: &'static str,
        identity: &Identity,
    ) -> Result<Self, ServerTlsError> {
        let (profile, oldest) = (TlsProfile::Legacy, SslVersion::TLS1);
        let settings = Settings { oldest, newest, ciphers, security_level: Some(0) };
        let context = context(&settings, identity)
            .map_err(|error| ServerTlsError::Settings(profile, error))?;
        Ok(Self { context, profile })
    }

    /// Shakes hands with itself in memory, once for each version and key exchange that the profile claims:
    /// what the linked library or the certificate cannot do is found before a device finds it.
    pub async fn prove(&self) -> Result<(), ServerTlsError> {
        for (_, version, suite) in
            PROMISES.into_iter().filter(|(profile, ..)| *profile <= self.profile)
        {
            let broken = |reason: String| ServerTlsError::Promise {
                profile: self.profile,
                version: version_of(version)
                    .map_or_else(String::new, |version| version.to_string()),
                suite,
                reason: format!(
                    "{reason}; use an RSA certificate and the vendored OpenSSL, or a stricter tls_profile"
                ),
            };
            let device =
                DeviceTls::new(version, Some(suite)).map_err(|error| broken(error.to_string()))?;
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let (served, connected) =
                tokio::join!(self.accept(Box::new(ours)), device.connect(Box::new(theirs)));
            served.map_err(|fault| broken(fault.reason))?;
            connected.map_err(|error| broken(error.to_string()))?;
        }
        Ok(())
    }

    /// Shakes hands with a device.
    pub async fn accept(&self, io: BoxIo) -> Result<Accepted, HandshakeFault> {
        let fault = |reason: String, offered| HandshakeFault { reason, silent: false, offered };
        let ssl = Ssl::new(&self.context).map_err(|error| fault(error.to_string(), None))?;
        let mut stream = SslStream::new(ssl, io).map_err(|error| fault(error.to_string(), None))?;
        let accepted = Pin::new(&mut stream).accept().await;
        let offered = stream.ssl().ex_data(hello_index()).cloned();
        if let Err(error) = accepted {
            let silent = offered.is_none() && error.ssl_error().is_none();
            return Err(HandshakeFault { reason: reason(&error), silent, offered });
        }
        let info = info(stream.ssl());
        Ok(Accepted { io: Box::new(stream), info, offered })
    }
}

/// RC4 is in OpenSSL's legacy provider. Where there is none, only the proof of profile `ancient` fails.
pub(super) fn load_legacy_provider() {
    static LEGACY_PROVIDER: OnceLock<Option<Provider>> = OnceLock::new();
    LEGACY_PROVIDER.get_or_init(|| Provider::try_load(None, "legacy", true).ok());
}

/// The version of OpenSSL that is linked.
pub fn library_version() -> &'static str {
    openssl::version::version()
}

pub(super) fn info(ssl: &SslRef) -> TlsInfo {
    TlsInfo {
        version: ssl.version_str(),
        cipher: ssl
            .current_cipher()
            .map_or_else(|| "none".to_owned(), |cipher| cipher.name().to_owned()),
    }
}

impl Settings {
    fn of(profile: TlsProfile) -> Self {
        let (ciphers, oldest, security_level) = match profile {
            TlsProfile::Modern => (MODERN, SslVersion::TLS1_2, None),
            TlsProfile::Legacy => (LEGACY, SslVersion::TLS1, Some(0)),
            TlsProfile::Ancient => (ANCIENT, SslVersion::SSL3, Some(0)),
        };
        Self { oldest, newest: SslVersion::TLS1_3, ciphers, security_level }
    }
}

fn context(settings: &Settings, identity: &Identity) -> Result<SslContext, ErrorStack> {
    let mut builder = SslContext::builder(SslMethod::tls_server())?;
    if let Some(level) = settings.security_level {
        builder.set_security_level(level);
    }
    // OpenSSL forbids SSLv3 by default, whatever the floor is.
    builder.clear_options(SslOptions::NO_SSLV3);
    builder.set_min_proto_version(Some(settings.oldest))?;
    builder.set_max_proto_version(Some(settings.newest))?;
    builder.set_cipher_list(settings.ciphers)?;
    builder.set_options(
        SslOptions::CIPHER_SERVER_PREFERENCE
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_COMPRESSION,
    );
    // No session tickets: Microsoft's own SMTP client drops connections over them (devices.md row 9).
    builder.set_options(SslOptions::NO_TICKET);
    builder.set_num_tickets(0)?;
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_mode(SslMode::RELEASE_BUFFERS);
    // The group of RFC 3526 section 3; the crate has no automatic choice.
    builder.set_tmp_dh(&*Dh::from_pqg(
        BigNum::get_rfc3526_prime_2048()?,
        None,
        BigNum::from_u32(2)?,
    )?)?;
    builder.set_certificate(&identity.certificate)?;
    builder.set_private_key(&identity.key)?;
    for certificate in &identity.chain {
        builder.add_extra_chain_cert(certificate.clone())?;
    }
    remember_hello(&mut builder);
    Ok(builder.build())
}

/// Keeps the ClientHello with its connection: for the log line of a handshake that fails, and for advice.
fn remember_hello(builder: &mut SslContextBuilder) {
    builder.set_client_hello_callback(|ssl, _| {
        let hello = client_hello(ssl);
        ssl.set_ex_data(hello_index(), hello);
        Ok(ClientHelloResponse::SUCCESS)
    });
}

fn client_hello(ssl: &SslRef) -> ClientHello {
    let suites = ssl
        .client_hello_ciphers()
        .and_then(|octets| ssl.bytes_to_cipher_list(octets, ssl.client_hello_isv2()).ok());
    let suites: Vec<_> = suites
        .iter()
        .flat_map(|lists| lists.suites.iter().take(64).map(|cipher| cipher.name()))
        .collect();
    // TLS 1.3 hides behind 1.2 in the version field; its suites give it away.
    let version = if suites.iter().any(|suite| suite.starts_with("TLS_")) {
        Some(TlsVersion::Tls1_3)
    } else {
        ssl.client_hello_legacy_version().and_then(version_of)
    };
    ClientHello { version, suites }
}

fn hello_index() -> Index<Ssl, ClientHello> {
    static INDEX: OnceLock<Index<Ssl, ClientHello>> = OnceLock::new();
    *INDEX.get_or_init(|| Ssl::new_ex_index().expect("the process has room for one index"))
}

fn version_of(version: SslVersion) -> Option<TlsVersion> {
    match version {
        SslVersion::SSL3 => Some(TlsVersion::Ssl3),
        SslVersion::TLS1 => Some(TlsVersion::Tls1_0),
        SslVersion::TLS1_1 => Some(TlsVersion::Tls1_1),
        SslVersion::TLS1_2 => Some(TlsVersion::Tls1_2),
        SslVersion::TLS1_3 => Some(TlsVersion::Tls1_3),
        _ => None,
    }
}

/// The short reason of OpenSSL's error, without file names and numbers.
fn reason(error: &ssl::Error) -> String {
    let stacked = error.ssl_error().and_then(|stack| stack.errors().first()?.reason());
    match (stacked, error.io_error()) {
        (Some(text), _) => text.to_owned(),
        (None, Some(io)) => io.to_string(),
        (None, None) => "the device closed the connection".to_owned(),
    }
}
