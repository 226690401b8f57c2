//! Access tokens as Exchange Online's are: JWTs of version 1.0 with an RS256 signature.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use openssl::rsa::Rsa;
use serde_json::{Value, json};

use super::{IssuerError, TENANT_ID, refusal::uuid};

/// The object id of the application's service principal, which Exchange wants to know.
const OBJECT_ID: &str = "0b7ec75e-0000-4000-8000-e57e2b51e1d5";

/// What tokens are signed with: a key that is made at start and never leaves the memory.
pub(super) struct Signer {
    key: EncodingKey,
    public_key: Vec<u8>,
}

/// What a token says.
pub(super) struct Words<'a> {
    pub(super) audience: &'a str,
    pub(super) client_id: &'a str,
    /// On whose behalf; `None`: the application's own.
    pub(super) user: Option<&'a str>,
    /// Whether it allows to send mail.
    pub(super) sends: bool,
    pub(super) now: i64,
    pub(super) lifetime: u32,
}

impl Signer {
    pub(super) fn new() -> Result<Self, IssuerError> {
        let failed = |error: &dyn std::fmt::Display| IssuerError::Key(error.to_string());
        let key = Rsa::generate(2048).map_err(|error| failed(&error))?;
        let pem = key.private_key_to_pem().map_err(|error| failed(&error))?;
        Ok(Self {
            key: EncodingKey::from_rsa_pem(&pem).map_err(|error| failed(&error))?,
            public_key: key.public_key_to_pem().map_err(|error| failed(&error))?,
        })
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// A token; empty if it cannot be signed, and then nobody takes it.
    pub(super) fn sign(&self, words: &Words<'_>) -> String {
        let header = Header { kid: Some("sandbox".to_owned()), ..Header::new(Algorithm::RS256) };
        jsonwebtoken::encode(&header, &words.claims(), &self.key).unwrap_or_default()
    }
}

impl Words<'_> {
    fn claims(&self) -> Value {
        let mut claims = json!({
            "aud": self.audience,
            "iss": format!("https://sts.windows.net/{TENANT_ID}/"),
            "iat": self.now,
            "nbf": self.now,
            "exp": self.now + i64::from(self.lifetime),
            "app_displayname": "relay",
            "appid": self.client_id,
            "oid": OBJECT_ID,
            "tid": TENANT_ID,
            "uti": uuid(),
            "ver": "1.0",
        });
        match self.user {
            Some(user) => {
                claims["upn"] = user.into();
                claims["idtyp"] = "user".into();
                claims["scp"] = if self.sends { "SMTP.Send" } else { "User.Read" }.into();
            }
            None => {
                claims["idtyp"] = "app".into();
                if self.sends {
                    claims["roles"] = json!(["SMTP.SendAsApp"]);
                }
            }
        }
        claims
    }
}
