//! What the listeners show to devices: their promises are proven at start, and again whenever the files of
//! the certificate have changed.

use std::{collections::HashMap, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::start::StartError;
use crate::{
    config::{CertificateFiles, Config, Listener, Stamp},
    policy::{ListenerTls, TlsProfile},
    relay::Door,
    telemetry::metrics::Metrics,
    transport::{
        certificate::{self, CertificateError, Identity},
        server_tls::ServerTls,
    },
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The certificate of all listeners.
pub(super) struct Certificate {
    files: CertificateFiles,
    /// What the files were before they were read last.
    seen: [Stamp; 2],
    shown: Vec<Shown>,
}

/// A listener that shows it.
struct Shown {
    listener: String,
    profile: TlsProfile,
    tls: watch::Sender<ServerTls>,
}

impl Certificate {
    /// The listeners of a configuration with their certificate, made once if none is configured.
    pub(super) async fn show(
        config: &Config,
        metrics: &Metrics,
    ) -> Result<(Vec<Door>, Self), StartError> {
        let files =
            config.certificate.clone().unwrap_or_else(|| certificate::self_made(&config.state_dir));
        // Stamped before they are read: what changes in between is read again.
        let seen = stamps(&files);
        let kept = |names: &[&str]| Identity::read_or_make(&config.state_dir, names);
        let (doors, shown) = doors(config, kept, metrics).await?;
        // One that was only made just now has not changed.
        let made = seen.iter().any(|stamp| stamp.is_absent());
        let seen = if made { stamps(&files) } else { seen };
        Ok((doors, Self { files, seen, shown }))
    }

    /// Finds what [`Certificate::show`] would find, without writing a file.
    pub(super) async fn check(config: &Config, metrics: &Metrics) -> Result<(), StartError> {
        doors(config, Identity::make, metrics).await.map(|_| ())
    }

    /// Looks after the files until everything is over. What cannot be used is not shown: the former
    /// certificate stays until the files are good again.
    pub(super) async fn watch(mut self, metrics: Metrics, over: CancellationToken) {
        while over.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let now = stamps(&self.files);
            if now == self.seen || self.shown.is_empty() {
                continue;
            }
            self.seen = now;
            let file = self.files.certificate.display();
            let renewed = self.renew(&metrics).await;
            metrics.reloaded(renewed.is_ok());
            match renewed {
                Ok(()) => {
                    tracing::info!(%file, "the certificate has changed: devices are shown the new one")
                }
                Err(error) => tracing::error!(
                    %error, "the certificate has changed and cannot be used: devices are shown the former one"
                ),
            }
        }
    }

    async fn renew(&self, metrics: &Metrics) -> Result<(), StartError> {
        let identity = Identity::read(&self.files.certificate, &self.files.private_key)?;
        let mut proofs = Proofs::new(&identity);
        let mut proven = Vec::new();
        for shown in &self.shown {
            proven.push(proofs.prove(&shown.listener, shown.profile).await?);
        }
        for (shown, tls) in self.shown.iter().zip(proven) {
            shown.tls.send_replace(tls);
            tell(&shown.listener, &identity, metrics);
        }
        Ok(())
    }
}

/// The listeners. Where no certificate is configured, it is one that `make` knows how to come by.
async fn doors(
    config: &Config,
    make: impl Fn(&[&str]) -> Result<Identity, CertificateError>,
    metrics: &Metrics,
) -> Result<(Vec<Door>, Vec<Shown>), StartError> {
    let speaks_tls = |listener: &Listener| listener.tls != ListenerTls::None;
    let identity = match &config.certificate {
        _ if !config.listeners.iter().any(speaks_tls) => None,
        Some(files) => Some(Identity::read(&files.certificate, &files.private_key)?),
        None => Some(make(&[&config.hostname])?),
    };
    let mut proofs = identity.as_ref().map(Proofs::new);
    let (mut doors, mut shown) = (Vec::new(), Vec::new());
    for listener in &config.listeners {
        let mut door = Door { listener: listener.clone(), tls: None };
        if let Some(proofs) = proofs.as_mut().filter(|_| speaks_tls(listener)) {
            let (name, profile) = (listener.name.clone(), listener.tls_profile);
            let (tls, shows) = watch::channel(proofs.prove(&name, profile).await?);
            tell(&name, proofs.identity, metrics);
            door.tls = Some(shows);
            shown.push(Shown { listener: name, profile, tls });
        }
        doors.push(door);
    }
    Ok((doors, shown))
}

/// The profiles that have kept every promise with a certificate, each proven once.
struct Proofs<'a> {
    identity: &'a Identity,
    proven: HashMap<TlsProfile, ServerTls>,
}

impl<'a> Proofs<'a> {
    fn new(identity: &'a Identity) -> Self {
        Self { identity, proven: HashMap::new() }
    }

    /// A listener's side of TLS.
    async fn prove(
        &mut self,
        listener: &str,
        profile: TlsProfile,
    ) -> Result<ServerTls, StartError> {
        if let Some(tls) = self.proven.get(&profile) {
            return Ok(tls.clone());
        }
        let failed = |cause| StartError::ServerTls { listener: listener.to_owned(), cause };
        let tls = ServerTls::new(profile, self.identity).map_err(failed)?;
        tls.prove().await.map_err(failed)?;
        self.proven.insert(profile, tls.clone());
        Ok(tls)
    }
}

/// Tells of the end of the certificate that a listener shows.
fn tell(listener: &str, identity: &Identity, metrics: &Metrics) {
    let Some(end) = identity.not_after() else { return };
    metrics.certificate_expiry(listener, end);
    let days = certificate::days_left(end, jiff::Timestamp::now().as_second());
    if days < certificate::RENEW {
        tracing::warn!(
            listener,
            days,
            "the certificate that devices see ends soon, or has ended: renew it"
        );
    }
}

fn stamps(files: &CertificateFiles) -> [Stamp; 2] {
    [Stamp::of(&files.certificate), Stamp::of(&files.private_key)]
}
