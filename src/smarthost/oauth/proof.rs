//! What the application proves itself with: a secret, or an assertion that it signs (RFC 7523 section 2.2). Read
//! anew for each request, so that a new one needs no restart.

use std::{fs, hash::Hash, path::Path};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use openssl::{
    hash::MessageDigest,
    pkey::{PKey, Private},
    rand::rand_bytes,
    x509::X509,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use super::{TokenError, endpoint::Form};
use crate::{
    config::{ClientProof, OAuth, Secret, SecretError, unreadable},
    transport::certificate,
};

/// How long an assertion is good, in seconds: Microsoft recommends 5 to 10 minutes.
const GOOD: i64 = 600;
/// No certificate is longer, chain and all; a stop for `/dev/zero`.
const LONGEST: u64 = 256 * 1024;

/// What the application proves itself with, as it is now.
pub(super) enum Proof {
    /// A public application.
    Nothing,
    /// A secret.
    Secret(SecretString),
    /// A certificate and its key, both PEM.
    Certificate { name: String, certificate: Vec<u8>, key: SecretString },
}

/// RFC 7523 section 3.
#[derive(Serialize)]
struct Claims<'a> {
    aud: &'a str,
    iss: &'a str,
    sub: &'a str,
    jti: String,
    nbf: i64,
    iat: i64,
    exp: i64,
}

impl Proof {
    /// Reads what is configured.
    pub(super) fn load(oauth: &OAuth) -> Result<Self, TokenError> {
        match &oauth.client {
            None => Ok(Self::Nothing),
            Some(ClientProof::Secret(secret)) => Ok(Self::Secret(
                secret.load().map_err(|error| unread("client_secret", secret, &error))?,
            )),
            Some(ClientProof::Certificate { certificate, private_key }) => Ok(Self::Certificate {
                name: certificate.display().to_string(),
                certificate: read(certificate)?,
                key: private_key
                    .load_text()
                    .map_err(|error| unread("private_key", private_key, &error))?,
            }),
        }
    }

    /// Adds it to a request to `audience`.
    pub(super) fn add_to(
        &self,
        form: &mut Form,
        oauth: &OAuth,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        match self {
            Self::Nothing => {}
            Self::Secret(secret) => form.add("client_secret", secret.expose_secret()),
            Self::Certificate { .. } => {
                form.add(
                    "client_assertion_type",
                    "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                );
                form.add("client_assertion", self.assertion(oauth, now)?);
            }
        }
        Ok(())
    }

    /// When the certificate ends, if there is one.
    pub(super) fn ends(&self) -> Option<Timestamp> {
        let Self::Certificate { certificate, .. } = self else { return None };
        let certificate = X509::stack_from_pem(certificate).ok()?.into_iter().next()?;
        Timestamp::from_second(certificate::unix(certificate.not_after())?).ok()
    }

    fn assertion(&self, oauth: &OAuth, now: Timestamp) -> Result<String, TokenError> {
        let Self::Certificate { name, certificate, key } = self else { return Ok(String::new()) };
        let no_certificate = || {
            TokenError::local(
                format!("no token: {name} holds no certificate in PEM form"),
                "Name the application's certificate, as it was uploaded to the app registration, in certificate",
            )
        };
        let shown =
            X509::stack_from_pem(certificate).ok().and_then(|chain| chain.into_iter().next());
        let shown = shown.ok_or_else(no_certificate)?;
        self.in_time(&shown, now)?;
        let wrong_key = |what: &str| {
            TokenError::local(
                format!("no token: private_key {what}"),
                &format!(
                    "Write the RSA key that belongs to {name}, in PEM form and without a passphrase, into what private_key names"
                ),
            )
        };
        let key =
            private(key).ok_or_else(|| wrong_key("holds no key, or one with a passphrase"))?;
        let rsa =
            key.rsa().map_err(|_| wrong_key("is no RSA key, and the endpoint takes no other"))?;
        let public = shown.public_key().map_err(|_| no_certificate())?;
        if !public.public_eq(&key) {
            return Err(wrong_key(&format!("does not belong to the certificate {name}")));
        }
        // What is left can only fail for want of memory or randomness.
        let failed = |error: &dyn std::fmt::Display| {
            TokenError::local(
                format!("no token: the assertion cannot be signed: {error}"),
                "Make a new certificate with an RSA key of 2,048 bits or more",
            )
        };
        let thumbprint = shown.digest(MessageDigest::sha256()).map_err(|error| failed(&error))?;
        let mut jti = [0; 16];
        rand_bytes(&mut jti).map_err(|error| failed(&error))?;
        let header = Header {
            x5t_s256: Some(BASE64_URL_SAFE_NO_PAD.encode(thumbprint)),
            ..Header::new(Algorithm::PS256)
        };
        let claims = Claims {
            aud: &oauth.token_url,
            iss: &oauth.client_id,
            sub: &oauth.client_id,
            jti: BASE64_URL_SAFE_NO_PAD.encode(jti),
            nbf: now.as_second(),
            iat: now.as_second(),
            exp: now.as_second() + GOOD,
        };
        let der = rsa.private_key_to_der().map_err(|error| failed(&error))?;
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_rsa_der(&der))
            .map_err(|error| failed(&error))
    }

    /// An assertion of a certificate that is not valid now would only be refused, and less clearly.
    fn in_time(&self, shown: &X509, now: Timestamp) -> Result<(), TokenError> {
        let Self::Certificate { name, .. } = self else { return Ok(()) };
        let at = |time| Timestamp::from_second(certificate::unix(time)?).ok();
        if let Some(end) = at(shown.not_after()).filter(|end| *end <= now) {
            return Err(TokenError::local(
                format!("no token: the certificate {name} has expired on {end}"),
                "Make a new one: openssl req -x509 -newkey rsa:2048 -nodes -keyout app.key -out app.crt -days 365 -subj /CN=smtp-uplift; upload \
                 app.crt to the app registration; then write both over the files that certificate and private_key name, which the \
                 relay takes up by itself, or name the new ones and restart it",
            ));
        }
        if let Some(begin) = at(shown.not_before()).filter(|begin| *begin > now) {
            return Err(TokenError::local(
                format!("no token: the certificate {name} is not valid before {begin}"),
                "Set this machine's clock if it is wrong (timedatectl), else wait",
            ));
        }
        Ok(())
    }
}

/// Tells one proof from another.
impl Hash for Proof {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        match self {
            Self::Nothing => {}
            Self::Secret(secret) => secret.expose_secret().hash(state),
            Self::Certificate { certificate, key, .. } => {
                (certificate, key.expose_secret()).hash(state);
            }
        }
    }
}

/// A secret of `[mailbox.oauth]` that cannot be had.
pub(super) fn unread(key: &str, secret: &Secret, error: &SecretError) -> TokenError {
    let place = secret.path().map(|path| format!(" ({})", path.display())).unwrap_or_default();
    let place = if matches!(error, SecretError::Unreadable { .. }) { String::new() } else { place };
    TokenError::local(
        format!("no token: {key}{place}: {error}"),
        &format!("Write it alone into what {key} names, readable for the relay's user"),
    )
}

fn read(path: &Path) -> Result<Vec<u8>, TokenError> {
    use std::io::Read as _;
    let mut octets = Vec::new();
    let file = fs::File::open(path);
    let read = file.and_then(|file| file.take(LONGEST).read_to_end(&mut octets));
    read.map_err(|cause| {
        TokenError::local(
            format!(
                "no token: certificate {} cannot be read: {}",
                path.display(),
                unreadable(path, &cause)
            ),
            "Make it readable for the relay's user, or correct certificate in [mailbox.oauth]",
        )
    })?;
    Ok(octets)
}

/// Reads a key that has no passphrase.
fn private(pem: &SecretString) -> Option<PKey<Private>> {
    // Without the callback OpenSSL would ask for a passphrase on the terminal.
    PKey::private_key_from_pem_callback(pem.expose_secret().as_bytes(), |_| Ok(0)).ok()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use jsonwebtoken::{DecodingKey, Validation};
    use openssl::{ec::EcGroup, ec::EcKey, nid::Nid};

    use super::*;
    use crate::{config::OAuthFlow, transport::certificate::Identity};

    fn oauth(folder: &Path) -> OAuth {
        OAuth {
            flow: OAuthFlow::ClientCredentials,
            tenant: "contoso.example".into(),
            client_id: "the-client".into(),
            client: Some(ClientProof::Certificate {
                certificate: folder.join("app.crt"),
                private_key: Secret::file(folder.join("app.key")),
            }),
            token_url: "https://login.example/contoso/oauth2/v2.0/token".into(),
            scope: "scope".into(),
            refresh_token: None,
            client_secret_expires: None,
        }
    }

    fn write(folder: &Path, identity: &Identity) {
        fs::write(folder.join("app.crt"), identity.certificate.to_pem().unwrap()).unwrap();
        fs::write(folder.join("app.key"), identity.key.private_key_to_pem_pkcs8().unwrap())
            .unwrap();
    }

    fn assertion(oauth: &OAuth, now: Timestamp) -> Result<String, String> {
        let proof = Proof::load(oauth).map_err(|error| error.to_string())?;
        proof.assertion(oauth, now).map_err(|error| error.to_string())
    }

    #[test]
    fn the_assertion_is_what_microsoft_asks_for() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::make(&["app"]).unwrap();
        write(folder.path(), &identity);
        let oauth = oauth(folder.path());
        let now = Timestamp::now();
        let token = assertion(&oauth, now).unwrap();
        let header = jsonwebtoken::decode_header(&token).unwrap();
        assert_eq!(header.alg, Algorithm::PS256);
        let thumbprint = identity.certificate.digest(MessageDigest::sha256()).unwrap();
        assert_eq!(header.x5t_s256.unwrap(), BASE64_URL_SAFE_NO_PAD.encode(thumbprint));
        let public = identity.key.rsa().unwrap().public_key_to_pem().unwrap();
        let mut rules = Validation::new(Algorithm::PS256);
        rules.set_audience(&[&oauth.token_url]);
        rules.set_issuer(&["the-client"]);
        rules.validate_nbf = true;
        let claims = jsonwebtoken::decode::<serde_json::Value>(
            &token,
            &DecodingKey::from_rsa_pem(&public).unwrap(),
            &rules,
        )
        .unwrap()
        .claims;
        assert_eq!(claims["sub"], "the-client");
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 600);
        let another = assertion(&oauth, now).unwrap();
        assert_ne!(token, another, "jti is another each time");
        assert_eq!(
            Proof::load(&oauth).unwrap().ends().unwrap().as_second(),
            identity.not_after().unwrap()
        );
    }

    #[test]
    fn what_is_wrong_on_this_machine_is_said_without_asking_anybody() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::make_for(&["app"], 10).unwrap();
        let oauth = oauth(folder.path());
        let now = Timestamp::now();
        let file = |name: &str| folder.path().join(name);
        let said = |now| assertion(&oauth, now).unwrap_err();
        assert!(said(now).contains("app.crt cannot be read: No such file"), "{}", said(now));
        write(folder.path(), &identity);
        let late = now + jiff::SignedDuration::from_hours(24 * 11);
        assert!(said(late).contains("app.crt has expired on "), "{}", said(late));
        let early = now - jiff::SignedDuration::from_hours(24);
        assert!(said(early).contains("is not valid before ") && said(early).contains("clock"));
        let other = Identity::make(&["other"]).unwrap();
        let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let curve = PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap();
        let cipher = openssl::symm::Cipher::aes_128_cbc();
        let locked = identity.key.private_key_to_pem_pkcs8_passphrase(cipher, b"x").unwrap();
        for (key, reason) in [
            (
                other.key.private_key_to_pem_pkcs8().unwrap(),
                "private_key does not belong to the certificate",
            ),
            (curve.private_key_to_pem_pkcs8().unwrap(), "private_key is no RSA key"),
            (locked, "private_key holds no key, or one with a passphrase"),
            (b"rubbish".to_vec(), "private_key holds no key"),
            (Vec::new(), "private_key"),
        ] {
            fs::write(file("app.key"), key).unwrap();
            assert!(said(now).contains(reason), "{reason}: {}", said(now));
            assert!(!said(now).contains("PRIVATE KEY"));
        }
        fs::remove_file(file("app.key")).unwrap();
        assert!(said(now).contains("app.key cannot be read: No such file"), "{}", said(now));
        write(folder.path(), &identity);
        fs::write(file("app.crt"), "rubbish").unwrap();
        assert!(said(now).contains("app.crt holds no certificate in PEM form"), "{}", said(now));
    }

    #[test]
    fn a_new_key_is_told_from_the_old_one() {
        use std::hash::{BuildHasher as _, RandomState};
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &Identity::make(&["app"]).unwrap());
        let oauth = oauth(&PathBuf::from(folder.path()));
        let hasher = RandomState::new();
        let print = || hasher.hash_one(Proof::load(&oauth).unwrap());
        let first = print();
        assert_eq!(first, print());
        write(folder.path(), &Identity::make(&["app"]).unwrap());
        assert_ne!(first, print());
    }
}
