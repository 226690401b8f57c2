//! Who gets a token, and for what (RFC 6749 sections 4 and 6, RFC 8628).

use std::{collections::HashMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use openssl::sha::sha256;
use reqwest::Url;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Answer, Authority, Code, DeviceCode, GRACE, Issued, Mistake, RefreshToken, TENANT_ID,
    assertion::{self, Expected},
    keep, random,
    refusal::Refusal,
    token::Words,
};

/// What a scope asks for at Exchange Online, in any cloud; another service gives other rights.
const EXCHANGE: [&str; 5] = [
    "https://outlook.office365.com",
    "https://outlook.office.com",
    "https://outlook.office365.us",
    "https://outlook-dod.office365.us",
    "https://partner.outlook.cn",
];
/// What a token is made out to, whichever of Exchange Online's names was asked for.
const AUDIENCE: &str = "https://outlook.office365.com";
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// By how much a device that asks too often has to slow down (RFC 8628 section 3.5).
const SLOWER: Duration = Duration::from_secs(5);

/// The parameters of a request.
pub(super) struct Form(HashMap<String, String>);

impl Form {
    /// Reads `application/x-www-form-urlencoded`, which is what a query is written in too.
    pub(super) fn parse(text: &str) -> Self {
        let mut url = Url::parse("http://form.invalid/").expect("a constant URL");
        url.set_query(Some(text));
        Self(url.query_pairs().into_owned().collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn need(&self, name: &str) -> Result<&str, Refusal> {
        self.get(name).ok_or_else(|| Refusal::missing(name))
    }
}

impl Authority {
    /// Answers a token request that came to this URL.
    pub(super) fn grant(&self, tenant: &str, url: &str, form: &Form) -> Result<Value, Refusal> {
        self.known_tenant(tenant)?;
        match form.need("grant_type")? {
            "client_credentials" => {
                self.proven(url, form, true)?;
                let scope = form.need("scope")?;
                let audience = (scope.strip_suffix("/.default"))
                    .filter(|resource| resource.starts_with("https://") && !resource.contains(' '))
                    .ok_or_else(|| Refusal::wrong_scope(scope))?;
                Ok(self.answer_with(audience, None))
            }
            "refresh_token" => {
                self.proven(url, form, false)?;
                let user = self.refreshed(form.need("refresh_token")?)?;
                self.delegated(form, user)
            }
            "authorization_code" => {
                self.proven(url, form, false)?;
                let user = self.redeemed(form)?;
                self.delegated(form, user)
            }
            "urn:ietf:params:oauth:grant-type:device_code" => {
                self.proven(url, form, false)?;
                let user = self.signed_in(form.need("device_code")?)?;
                self.delegated(form, user)
            }
            other => {
                let text = format!("The app requested an unsupported grant type '{other}'.");
                Err(Refusal::new("unsupported_grant_type", 70_003, text))
            }
        }
    }

    /// RFC 8628 section 3.2.
    pub(super) fn device_code(&self, tenant: &str, form: &Form) -> Result<Value, Refusal> {
        self.known_tenant(tenant)?;
        self.known_app(form)?;
        delegated_scope(form.need("scope")?)?;
        let (device_code, user_code) = (random(60), random(9).to_ascii_uppercase());
        let expires_in = self.tenant.device_code_lifetime;
        let verification_uri = format!("http://{}/devicelogin", self.address);
        let answer = json!({
            "device_code": device_code,
            "user_code": user_code,
            "verification_uri": verification_uri,
            "expires_in": expires_in,
            "interval": self.tenant.interval,
            "message": format!(
                "To sign in, use a web browser to open the page {verification_uri} and enter the code {user_code} to \
                 authenticate."
            ),
        });
        let code = DeviceCode {
            device_code,
            user_code,
            answer: Answer::None,
            ends: Instant::now() + Duration::from_secs(expires_in.into()),
            interval: Duration::from_secs(self.tenant.interval.into()),
            asked: None,
        };
        keep(&mut self.known().device_codes, code);
        Ok(answer)
    }

    /// Somebody signs in and approves at once; returns where the browser goes (RFC 6749 section 4.1.2).
    pub(super) fn authorize(&self, tenant: &str, form: &Form) -> Result<Url, Refusal> {
        self.known_tenant(tenant)?;
        self.known_app(form)?;
        delegated_scope(form.need("scope")?)?;
        let redirect_uri = form.need("redirect_uri")?;
        // Microsoft takes any port and path on loopback for an application on the desktop (RFC 8252 section 7.3).
        let mut back = (Url::parse(redirect_uri).ok())
            .filter(|url| {
                url.scheme() == "http"
                    && matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"))
            })
            .ok_or_else(|| {
                let text = format!("The redirect URI '{redirect_uri}' specified in the request does not match the redirect URIs configured for the application.");
                Refusal::new("invalid_request", 50_011, text)
            })?;
        if form.need("response_type")? != "code" || form.need("code_challenge_method")? != "S256" {
            let text = "Only response_type=code with code_challenge_method=S256 is played here.";
            return Err(Refusal::new("invalid_request", 900_144, text));
        }
        let code = Code {
            code: random(60),
            user: form.get("login_hint").unwrap_or(self.somebody()).to_owned(),
            redirect_uri: redirect_uri.to_owned(),
            challenge: form.need("code_challenge")?.to_owned(),
        };
        back.query_pairs_mut().append_pair("code", &code.code);
        if let Some(state) = form.get("state") {
            back.query_pairs_mut().append_pair("state", state);
        }
        keep(&mut self.known().codes, code);
        Ok(back)
    }

    /// What a token is worth (RFC 7662).
    pub(super) fn introspect(&self, token: &str) -> Value {
        let known = self.known();
        let issued = known.tokens.iter().find(|issued| issued.token == token);
        match issued.filter(|issued| issued.sends && issued.ends > Instant::now()) {
            Some(issued) => json!({
                "active": true,
                "username": issued.user.as_deref().unwrap_or(self.somebody()),
                "scope": if issued.user.is_some() { "SMTP.Send" } else { "SMTP.SendAsApp" },
                "client_id": self.tenant.client_id,
                "token_type": "Bearer",
            }),
            None => json!({ "active": false }),
        }
    }

    /// A token of the application's own, as if it had asked for it.
    pub fn issue(&self) -> String {
        self.issue_for(AUDIENCE, None)
    }

    fn known_tenant(&self, tenant: &str) -> Result<(), Refusal> {
        let known = tenant.eq_ignore_ascii_case(&self.tenant.tenant) || tenant == TENANT_ID;
        if !known || self.known().mistake == Some(Mistake::WrongTenant) {
            return Err(Refusal::unknown_tenant(tenant));
        }
        Ok(())
    }

    fn known_app<'f>(&self, form: &'f Form) -> Result<&'f str, Refusal> {
        let client_id = form.need("client_id")?;
        if client_id != self.tenant.client_id {
            return Err(Refusal::unknown_app(client_id, &self.tenant.tenant));
        }
        Ok(client_id)
    }

    /// Whether the application is who it says. Where people have signed in it may be a public one, without proof.
    fn proven(&self, url: &str, form: &Form, needed: bool) -> Result<(), Refusal> {
        let client_id = self.known_app(form)?;
        let mistake = self.known().mistake;
        if let Some(secret) = form.get("client_secret") {
            return match mistake {
                Some(Mistake::ExpiredSecret) => Err(Refusal::ended_secret(client_id)),
                Some(Mistake::WrongSecret) => Err(Refusal::wrong_secret(client_id)),
                _ if self.tenant.client_secret.as_deref() == Some(secret) => Ok(()),
                _ => Err(Refusal::wrong_secret(client_id)),
            };
        }
        let Some(assertion) = form.get("client_assertion") else {
            return if needed { Err(Refusal::no_proof()) } else { Ok(()) };
        };
        if form.need("client_assertion_type")? != JWT_BEARER {
            return Err(Refusal::missing("client_assertion_type"));
        }
        let expected = Expected {
            certificate: self.certificate.as_ref(),
            client_id,
            url,
            mistake,
            now: self.now(),
        };
        let jti = assertion::check(assertion, &expected)?;
        let assertions = &mut self.known().assertions;
        if assertions.contains(&jti) {
            return Err(assertion::refused(
                700_027,
                format!("Client assertion was used before. [Reason - jti '{jti}' is known.]"),
            ));
        }
        keep(assertions, jti);
        Ok(())
    }

    fn refreshed(&self, token: &str) -> Result<String, Refusal> {
        let tokens = &mut self.known().refresh_tokens;
        let at = tokens.iter().position(|known| known.token == token);
        let at = at.ok_or_else(Refusal::ended_refresh_token)?;
        match tokens[at].used {
            None => {
                tokens[at].used = Some(Instant::now());
                Ok(tokens[at].user.clone())
            }
            Some(used) => {
                let last = tokens.remove(at).filter(|_| used.elapsed() < GRACE);
                last.map(|token| token.user).ok_or_else(Refusal::ended_refresh_token)
            }
        }
    }

    fn redeemed(&self, form: &Form) -> Result<String, Refusal> {
        let code = form.need("code")?;
        let codes = &mut self.known().codes;
        let at = codes.iter().position(|known| known.code == code);
        let code = at.and_then(|at| codes.remove(at)).ok_or_else(Refusal::bad_code)?;
        let verifier = form.need("code_verifier")?;
        if BASE64_URL_SAFE_NO_PAD.encode(sha256(verifier.as_bytes())) != code.challenge {
            let text = "The size of the code_verifier is wrong, or it does not match the code_challenge supplied in the authorization request.";
            return Err(Refusal::new("invalid_grant", 501_481, text));
        }
        if form.need("redirect_uri")? != code.redirect_uri {
            let text = "The reply address does not match that of the authorization request.";
            return Err(Refusal::new("invalid_grant", 500_112, text));
        }
        Ok(code.user)
    }

    fn signed_in(&self, device_code: &str) -> Result<String, Refusal> {
        let codes = &mut self.known().device_codes;
        let at = codes.iter().position(|known| known.device_code == device_code);
        let at = at.ok_or_else(|| {
            Refusal::new("bad_verification_code", 70_019, "Verification code is unknown.")
        })?;
        let (code, now) = (&mut codes[at], Instant::now());
        if code.ends <= now {
            return Err(Refusal::new(
                "expired_token",
                70_020,
                "The provided value for the input parameter 'device_code' is not valid. This device code has expired.",
            ));
        }
        let early = code.asked.is_some_and(|asked| now - asked < code.interval);
        code.asked = Some(now);
        match &code.answer {
            Answer::No => Err(Refusal::new(
                "access_denied",
                70_018,
                "The end user denied the authorization request.",
            )),
            Answer::None if early => {
                code.interval += SLOWER;
                Err(Refusal::new("slow_down", 70_016, "The polling interval is too short."))
            }
            Answer::None => Err(Refusal::new(
                "authorization_pending",
                70_016,
                "OAuth 2.0 device flow error. Authorization is pending. Continue polling.",
            )),
            Answer::Yes { user } => {
                let user = user.clone();
                codes.remove(at);
                Ok(user)
            }
        }
    }

    /// A token on behalf of somebody, with the refresh token for the next.
    fn delegated(&self, form: &Form, user: String) -> Result<Value, Refusal> {
        if let Some(scope) = form.get("scope") {
            delegated_scope(scope)?;
        }
        if self.known().mistake == Some(Mistake::NoConsent) {
            return Err(Refusal::no_consent(&self.tenant.client_id));
        }
        let mut answer = self.answer_with(AUDIENCE, Some(&user));
        let token = format!("1.{}", random(200));
        answer["refresh_token"] = token.clone().into();
        answer["scope"] = "https://outlook.office.com/SMTP.Send".into();
        keep(&mut self.known().refresh_tokens, RefreshToken { token, user, used: None });
        Ok(answer)
    }

    /// RFC 6749 section 5.1.
    fn answer_with(&self, audience: &str, user: Option<&str>) -> Value {
        json!({
            "token_type": "Bearer",
            "expires_in": self.tenant.lifetime,
            "ext_expires_in": self.tenant.lifetime,
            "access_token": self.issue_for(audience, user),
        })
    }

    fn issue_for(&self, asked: &str, user: Option<&str>) -> String {
        let exchange = EXCHANGE.contains(&asked.trim_end_matches('/'));
        let sends = exchange && self.known().mistake != Some(Mistake::MissingRole);
        let words = Words {
            audience: if exchange { AUDIENCE } else { asked },
            client_id: &self.tenant.client_id,
            user,
            sends,
            now: self.now(),
            lifetime: self.tenant.lifetime,
        };
        let token = self.signer.sign(&words);
        let issued = Issued {
            token: token.clone(),
            user: user.map(str::to_owned),
            sends,
            ends: Instant::now() + Duration::from_secs(self.tenant.lifetime.into()),
        };
        keep(&mut self.known().tokens, issued);
        token
    }
}

/// Whether a scope asks for mail on behalf of somebody, and for a refresh token.
fn delegated_scope(scope: &str) -> Result<(), Refusal> {
    let mut asked = scope.split(' ');
    let sends = asked.any(|scope| {
        let service = scope.strip_suffix("/SMTP.Send").or(scope.strip_suffix("/.default"));
        service.is_some_and(|service| EXCHANGE.contains(&service))
    });
    sends.then_some(()).ok_or_else(|| Refusal::wrong_scope(scope))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::identity::Tenant;

    #[tokio::test(start_paused = true)]
    async fn a_used_refresh_token_works_once_more_for_a_minute() {
        let authority = Authority::new(Tenant::default(), ([127, 0, 0, 1], 0).into()).unwrap();
        let form = Form::parse("");
        for (wait, again) in [(59, true), (61, false)] {
            let answer = authority.delegated(&form, "scanner@example.com".to_owned()).unwrap();
            let token = answer["refresh_token"].as_str().unwrap();
            assert!(authority.refreshed(token).is_ok());
            tokio::time::advance(Duration::from_secs(wait)).await;
            assert_eq!(authority.refreshed(token).is_ok(), again, "{wait} s later");
            assert!(authority.refreshed(token).is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_ends_and_nothing_grows() {
        let authority = Authority::new(Tenant::default(), ([127, 0, 0, 1], 0).into()).unwrap();
        let token = authority.issue();
        tokio::time::advance(Duration::from_secs(3_598)).await;
        assert!(authority.accepts(&token, "scanner@example.com"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!authority.accepts(&token, "scanner@example.com"));
        for _ in 0..=super::super::KNOWN {
            authority.authorize("contoso.onmicrosoft.com", &Form::parse(
                "client_id=6731de76-14a6-49ae-97bc-6eba6914391e&response_type=code&redirect_uri=http://localhost/&\
                 code_challenge=x&code_challenge_method=S256&scope=https://outlook.office.com/SMTP.Send",
            )).unwrap();
        }
        assert_eq!(authority.known().codes.len(), super::super::KNOWN);
    }
}
