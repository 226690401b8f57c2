//! Client assertions (RFC 7523) as Microsoft wants them: PS256, and the certificate's SHA-256 thumbprint in the
//! header.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use openssl::{hash::MessageDigest, x509::X509};
use serde::Deserialize;

use super::{Mistake, refusal::Refusal};
use crate::transport::certificate;

/// The longest that an assertion may be good for, in seconds.
const LONGEST: i64 = 600;
/// How far clocks may be apart, in seconds.
const LEEWAY: i64 = 300;

#[derive(Deserialize)]
struct Claims {
    aud: String,
    iss: String,
    sub: String,
    jti: String,
    nbf: i64,
    exp: i64,
}

/// What an assertion has to suit.
pub(super) struct Expected<'a> {
    pub(super) certificate: Option<&'a X509>,
    pub(super) client_id: &'a str,
    pub(super) url: &'a str,
    pub(super) mistake: Option<Mistake>,
    pub(super) now: i64,
}

/// Checks an assertion; returns its `jti`.
pub(super) fn check(assertion: &str, expected: &Expected<'_>) -> Result<String, Refusal> {
    let header = jsonwebtoken::decode_header(assertion)
        .map_err(|error| refused(50_027, format!("Invalid JWT token: {error}.")))?;
    let shown = header.x5t_s256.unwrap_or_default();
    let reason = |reason: &str| {
        let words = if reason.ends_with("not found.") {
            "The certificate with identifier used to sign the client assertion is not registered on application."
        } else {
            "Client assertion failed signature validation."
        };
        refused(
            700_027,
            format!("{words} [Reason - {reason}, Thumbprint of key used by client: '{shown}']"),
        )
    };
    let broken = |_| reason("The key cannot be used.");
    let certificate = expected.certificate.ok_or_else(|| reason("The key was not found."))?;
    let digest = certificate.digest(MessageDigest::sha256()).map_err(broken)?;
    if BASE64_URL_SAFE_NO_PAD.encode(digest) != shown {
        return Err(reason("The key was not found."));
    }
    let ended = certificate::unix(certificate.not_after()).is_none_or(|end| end <= expected.now);
    if ended || expected.mistake == Some(Mistake::ExpiredCertificate) {
        return Err(reason("The key used is expired."));
    }
    let key = certificate.public_key().and_then(|key| key.public_key_to_pem()).map_err(broken)?;
    let key = DecodingKey::from_rsa_pem(&key).map_err(|_| reason("The key cannot be used."))?;
    // Only the signature: times are judged by the endpoint's own clock, the rest in Microsoft's words.
    let mut validation = Validation::new(Algorithm::PS256);
    (validation.validate_exp, validation.validate_aud) = (false, false);
    validation.required_spec_claims.clear();
    let claims = jsonwebtoken::decode::<Claims>(assertion, &key, &validation);
    let Claims { aud, iss, sub, jti, nbf, exp } = match claims {
        Ok(token) => token.claims,
        Err(error) => {
            return Err(match error.kind() {
                ErrorKind::InvalidSignature => {
                    reason("The key was found, but the signature is invalid.")
                }
                _ => refused(50_027, format!("Invalid JWT token: {error}.")),
            });
        }
    };
    if aud != expected.url {
        return Err(refused(
            700_023,
            format!("Client assertion audience claim does not match Realm issuer: {aud}."),
        ));
    }
    if iss != expected.client_id || sub != expected.client_id {
        return Err(refused(
            700_021,
            "Client assertion application identifier doesn't match 'client_id' parameter.",
        ));
    }
    let now = expected.now;
    if nbf > now + LEEWAY || exp <= now - LEEWAY || exp.saturating_sub(nbf) > LONGEST || exp <= nbf
    {
        return Err(refused(
            700_024,
            format!(
                "Client assertion is not within its valid time range. Current time: {now}, assertion valid from {nbf}, \
                 expiry time of assertion {exp}."
            ),
        ));
    }
    if jti.is_empty() {
        return Err(refused(50_027, "Invalid JWT token: no jti."));
    }
    Ok(jti)
}

pub(super) fn refused(number: u32, text: impl Into<String>) -> Refusal {
    Refusal::new("invalid_client", number, text)
}
