//! TLS with devices: what each profile takes and what it refuses, and how a session begins.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

#[path = "tls/opening.rs"]
mod opening;
#[path = "tls/profiles.rs"]
mod profiles;
#[path = "tls/rows.rs"]
mod rows;

use openssl::ssl::SslVersion;
use smtp_uplift::{
    policy::TlsProfile::{self, Ancient, Legacy, Modern},
    transport::{
        certificate::Identity,
        device_tls::DeviceTls,
        server_tls::{Accepted, HandshakeFault, ServerTls},
    },
};
use tokio::io::AsyncWriteExt as _;

fn server(profile: TlsProfile) -> ServerTls {
    ServerTls::new(profile, &Identity::make(&["relay.example"]).unwrap()).unwrap()
}

async fn shake(server: &ServerTls, device: &DeviceTls) -> Result<Accepted, HandshakeFault> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (served, _) = tokio::join!(server.accept(Box::new(ours)), device.connect(Box::new(theirs)));
    served
}

/// Every version and key exchange, with the strictest profile that takes it.
const DEVICES: [(SslVersion, &str, TlsProfile); 17] = [
    (SslVersion::TLS1_3, "TLS_AES_128_GCM_SHA256", Modern),
    (SslVersion::TLS1_3, "TLS_CHACHA20_POLY1305_SHA256", Modern),
    (SslVersion::TLS1_2, "ECDHE-RSA-AES256-GCM-SHA384", Modern),
    (SslVersion::TLS1_2, "DHE-RSA-AES128-GCM-SHA256", Modern),
    (SslVersion::TLS1_2, "ECDHE-RSA-AES128-SHA256", Legacy),
    (SslVersion::TLS1_2, "AES128-GCM-SHA256", Legacy),
    (SslVersion::TLS1_2, "AES256-SHA", Legacy),
    (SslVersion::TLS1_1, "ECDHE-RSA-AES128-SHA", Legacy),
    (SslVersion::TLS1_1, "AES128-SHA", Legacy),
    (SslVersion::TLS1, "ECDHE-RSA-AES128-SHA", Legacy),
    (SslVersion::TLS1, "AES128-SHA", Legacy),
    (SslVersion::TLS1, "DHE-RSA-AES256-SHA", Legacy),
    (SslVersion::TLS1, "DES-CBC3-SHA", Ancient),
    (SslVersion::TLS1, "RC4-SHA", Ancient),
    (SslVersion::TLS1, "RC4-MD5", Ancient),
    (SslVersion::SSL3, "AES128-SHA", Ancient),
    (SslVersion::SSL3, "RC4-SHA", Ancient),
];

#[tokio::test]
async fn each_profile_takes_what_it_says_and_nothing_else() {
    let profiles: &[TlsProfile] =
        if cfg!(feature = "vendored") { &[Modern, Legacy, Ancient] } else { &[Modern, Legacy] };
    for profile in profiles {
        let server = server(*profile);
        server.prove().await.unwrap();
        for (version, suite, needs) in DEVICES {
            // A library without SSLv3 or RC4 cannot play such a device either.
            let Ok(device) = DeviceTls::new(version, Some(suite)) else { continue };
            let taken = shake(&server, &device).await;
            assert_eq!(taken.is_ok(), needs <= *profile, "{profile} and {suite}");
            let offered = match taken {
                Ok(accepted) => {
                    assert_eq!(accepted.info.cipher, suite);
                    accepted.offered
                }
                Err(fault) => fault.offered,
            };
            let offered = match offered {
                Some(offered) => offered,
                None if cfg!(not(feature = "vendored")) => continue,
                None => panic!("{version:?} {suite}: nothing was offered"),
            };
            // What an operator is told is what happens.
            let offer = offered.offer();
            assert_eq!(offer.needs, Some(needs), "{version:?} {suite}: {offer}");
        }
    }
}

#[cfg(not(feature = "vendored"))]
#[tokio::test]
async fn a_library_without_the_old_ciphers_is_found_out_at_start() {
    let error = server(Ancient).prove().await.unwrap_err().to_string();
    assert!(error.contains("profile ancient promises"), "{error}");
}

#[tokio::test]
async fn version_and_cipher_are_known() {
    let device = DeviceTls::new(SslVersion::TLS1, Some("AES256-SHA")).unwrap();
    let info = shake(&server(Legacy), &device).await.unwrap().info;
    assert_eq!(info.to_string(), "TLSv1/AES256-SHA");
    let modern = DeviceTls::new(SslVersion::TLS1_3, None).unwrap();
    assert_eq!(shake(&server(Legacy), &modern).await.unwrap().info.version, "TLSv1.3");
}

#[tokio::test]
async fn a_failed_handshake_tells_what_the_device_offered() {
    let device = DeviceTls::new(SslVersion::TLS1, Some("AES256-SHA")).unwrap();
    let said = shake(&server(Modern), &device).await.err().unwrap().to_string();
    assert!(
        said.starts_with("unsupported protocol; the device offered TLS 1.0 with AES256-SHA"),
        "{said}"
    );

    let (ours, mut theirs) = tokio::io::duplex(1024);
    let device = async {
        theirs.write_all(b"EHLO printer\r\n").await.unwrap();
        theirs.shutdown().await.unwrap();
    };
    let server = server(Legacy);
    let (served, ()) = tokio::join!(server.accept(Box::new(ours)), device);
    let said = served.err().unwrap().to_string();
    assert!(said.ends_with("the device offered nothing that is TLS"), "{said}");
}

#[tokio::test]
async fn a_certificate_that_old_devices_do_not_know_is_found_out_at_start() {
    use openssl::{
        asn1::Asn1Time, ec, hash::MessageDigest, nid::Nid, pkey::PKey, x509::X509Builder,
    };
    let group = ec::EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(ec::EcKey::generate(&group).unwrap()).unwrap();
    let mut builder = X509Builder::new().unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    let identity = Identity { certificate: builder.build(), chain: vec![], key };
    let error = ServerTls::new(Legacy, &identity).unwrap().prove().await.unwrap_err().to_string();
    assert!(error.contains("use an RSA certificate"), "{error}");
}
