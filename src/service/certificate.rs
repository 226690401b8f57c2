//! What the listeners show to devices: their promises are proven at start, and again whenever the files of
//! the certificate have changed.

use std::{collections::HashMap, sync::Arc, time::Duration};

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
    /// Listeners that show it.
    listeners: Vec<String>,
    shown: Vec<Shown>,
}

/// A profile that some device may need.
struct Shown {
    profile: TlsProfile,
    /// The first that needs it.
    whose: String,
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
        let listeners = show_it(config).map(str::to_owned).collect();
        // One that was only made just now has not changed.
        let made = seen.iter().any(|stamp| stamp.is_absent());
        let seen = if made { stamps(&files) } else { seen };
        Ok((doors, Self { files, seen, listeners, shown }))
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
        let mut proven = Vec::new();
        for shown in &self.shown {
            proven.push(prove(shown.profile, &shown.whose, &identity).await?);
        }
        for (shown, tls) in self.shown.iter().zip(proven) {
            shown.tls.send_replace(tls);
        }
        self.listeners.iter().for_each(|listener| tell(listener, &identity, metrics));
        Ok(())
    }
}

/// The listeners. Where no certificate is configured, it is one that `make` knows how to come by.
async fn doors(
    config: &Config,
    make: impl Fn(&[&str]) -> Result<Identity, CertificateError>,
    metrics: &Metrics,
) -> Result<(Vec<Door>, Vec<Shown>), StartError> {
    let needed = needed(config);
    let (mut contexts, mut shown) = (HashMap::new(), Vec::new());
    if !needed.is_empty() {
        let identity = match &config.certificate {
            Some(files) => Identity::read(&files.certificate, &files.private_key)?,
            None => make(&[&config.hostname])?,
        };
        for (profile, whose) in needed {
            let (tls, shows) = watch::channel(prove(profile, &whose, &identity).await?);
            contexts.insert(profile, shows);
            shown.push(Shown { profile, whose, tls });
        }
        show_it(config).for_each(|listener| tell(listener, &identity, metrics));
    }
    let contexts = Arc::new(contexts);
    let door =
        |listener: &Listener| Door { listener: listener.clone(), tls: Arc::clone(&contexts) };
    Ok((config.listeners.iter().map(door).collect(), shown))
}

/// The listeners that show a certificate.
fn show_it(config: &Config) -> impl Iterator<Item = &str> {
    let speak =
        config.listeners.iter().filter(|listener| listener.profile.tls != ListenerTls::None);
    speak.map(|listener| listener.name.as_str())
}

/// The profiles that some device may need, each with the first that needs it.
fn needed(config: &Config) -> Vec<(TlsProfile, String)> {
    let mut needed = Vec::new();
    for listener in &config.listeners {
        let itself = (listener.profile.clone(), format!("listener {}", listener.name));
        let own = config.devices.iter().map(|device| {
            (listener.profile.with(&device.profile), format!("device {}", device.name))
        });
        for (profile, whose) in std::iter::once(itself).chain(own) {
            let known = needed.iter().any(|(known, _)| *known == profile.tls_profile);
            if profile.tls != ListenerTls::None && !known {
                needed.push((profile.tls_profile, whose));
            }
        }
    }
    needed
}

/// Our side of TLS for a profile that has kept every promise with a certificate.
async fn prove(
    profile: TlsProfile,
    whose: &str,
    identity: &Identity,
) -> Result<ServerTls, StartError> {
    let failed = |cause| StartError::ServerTls { whose: whose.to_owned(), cause };
    let tls = ServerTls::new(profile, identity).map_err(failed)?;
    tls.prove().await.map_err(failed)?;
    Ok(tls)
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
