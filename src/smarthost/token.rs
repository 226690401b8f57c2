//! What stands in an access token, for people only: the relay itself never acts on it.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::examination::{Finding, Outcome};

/// Whom tokens are made out to that another service of Microsoft takes: the usual mistake.
const GRAPH: &str = "graph.microsoft";
/// What such a token must allow: to an app of its own, or to one on behalf of a user.
const ROLE: &str = "SMTP.SendAsApp";
const SCOPE: &str = "SMTP.Send";
/// What to do for an application whose token does not allow to send mail.
pub(super) const GRANT: &str = "Give the app the application permission SMTP.SendAsApp of Office 365 Exchange Online, with admin consent (or \
                                the delegated SMTP.Send)";
/// Microsoft dates a token back by 5 minutes; seconds beyond that are a clock that is wrong.
const DATED_BACK: i64 = 300;
const SKEW: i64 = 120;

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audience,
    exp: Option<i64>,
    iat: Option<i64>,
    appid: Option<String>,
    oid: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    scp: String,
    upn: Option<String>,
    preferred_username: Option<String>,
    unique_name: Option<String>,
}

/// One, or several (RFC 7519 section 4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

/// Looks at whom a token is for, what it allows, and until when.
pub(super) fn examine(token: &str) -> Finding {
    let (outcome, found, remedy) = match claims(token) {
        Some(claims) => judge(&claims, jiff::Timestamp::now().as_second()),
        None => (
            Outcome::Warning,
            "the token cannot be read (it is no JWT): only the smarthost knows what it is worth"
                .to_owned(),
            "Check that the file holds the access token alone, not the whole answer of the token endpoint",
        ),
    };
    let remedy = Some(remedy).filter(|remedy| !remedy.is_empty());
    Finding {
        step: "token".to_owned(),
        outcome,
        found,
        rule: None,
        remedy: remedy.into_iter().map(str::to_owned).collect(),
    }
}

/// An application that acts for itself.
pub(super) struct Application {
    /// Its client id.
    pub(super) id: String,
    /// The object id of its service principal: that of Enterprise applications.
    pub(super) object: Option<String>,
    /// Whether the token allows to send mail.
    pub(super) sends: bool,
}

/// The application whose own a token is.
pub(super) fn application(token: &str) -> Option<Application> {
    let claims = claims(token)?;
    if !claims.scp.is_empty() || who(token).is_some() {
        return None;
    }
    let sends = claims.sends();
    Some(Application { id: claims.appid?, object: claims.oid, sends })
}

/// By how many seconds this machine's clock is behind that of whoever has just made a token, if by too many; below 0
/// it is ahead.
pub(super) fn behind(token: &str, now: jiff::Timestamp) -> Option<i64> {
    // Whatever somebody writes there; the positive of the least number is none.
    let behind = claims(token)?.iat?.saturating_sub(now.as_second()).max(-i64::MAX);
    (!(-(SKEW + DATED_BACK)..=SKEW).contains(&behind)).then_some(behind)
}

/// When a token ends.
pub(super) fn expires(token: &str) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_second(claims(token)?.exp?).ok()
}

/// Who has signed in for a token.
pub(super) fn who(token: &str) -> Option<String> {
    let claims = claims(token)?;
    claims.upn.or(claims.preferred_username).or(claims.unique_name)
}

fn judge(claims: &Claims, now: i64) -> (Outcome, String, &'static str) {
    let allowed = [claims.roles.join(" "), claims.scp.clone()].join(" ").trim().to_owned();
    let audience = match &claims.aud {
        Audience::One(one) => one.clone(),
        Audience::Several(several) => several.join(", "),
    };
    let what = format!(
        "made out to {}, allows {}",
        audience,
        if allowed.is_empty() { "nothing" } else { &allowed }
    );
    if let Some(exp) = claims.exp.filter(|exp| *exp <= now) {
        (
            Outcome::Failed,
            format!("{what}, ended {} hours ago", now.saturating_sub(exp) / 3600),
            "Whatever renews the token has stopped, or this machine's clock is wrong",
        )
    } else if audience.contains(GRAPH) {
        (
            Outcome::Warning,
            what,
            "For Exchange Online ask for the scope https://outlook.office365.com/.default, not one of Microsoft Graph",
        )
    } else if !claims.sends() {
        (Outcome::Warning, what, GRANT)
    } else {
        let left = claims
            .exp
            .map(|exp| format!(", good for {} more minutes", exp.saturating_sub(now) / 60));
        (Outcome::Ok, format!("{what}{}", left.unwrap_or_default()), "")
    }
}

impl Claims {
    /// Whether they allow to send mail.
    fn sends(&self) -> bool {
        self.roles.iter().any(|role| role == ROLE)
            || self.scp.split(' ').any(|scope| scope == SCOPE)
    }
}

/// The claims of a JWT (RFC 7519), unverified: whoever it is for does that.
fn claims(token: &str) -> Option<Claims> {
    let payload = token.split('.').nth(1)?;
    let octets = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice(&octets).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("x.{}.y", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_clock_that_is_wrong_shows_in_a_new_token() {
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        for (iat, told) in [
            (1_800_000_000, None),
            (1_799_999_700, None),
            (1_799_999_400, Some(-600)),
            (1_800_000_600, Some(600)),
        ] {
            assert_eq!(behind(&token(&format!("{{\"iat\":{iat}}}")), now), told, "{iat}");
        }
        assert_eq!(behind("opaque", now), None);
    }

    #[test]
    fn any_number_is_a_time() {
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let with = |number: i64| {
            token(&format!(
                r#"{{"aud":"a","roles":["SMTP.SendAsApp"],"iat":{number},"exp":{number}}}"#
            ))
        };
        for before in [now, jiff::Timestamp::from_second(-1).unwrap()] {
            for number in [i64::MIN, i64::MIN + 1, i64::MAX] {
                assert!(behind(&with(number), before).unwrap().abs() > 1 << 60, "{number}");
            }
        }
        assert_eq!(examine(&with(i64::MIN)).outcome, Outcome::Failed);
        assert_eq!(examine(&with(i64::MAX)).outcome, Outcome::Ok);
        let long_ago = claims(&with(i64::MAX)).unwrap();
        assert_eq!(judge(&long_ago, -1).0, Outcome::Ok);
        assert_eq!(expires(&with(i64::MIN)), None);
    }

    #[test]
    fn an_application_is_told_from_a_person() {
        let app = application(&token(r#"{"appid":"a","oid":"o","roles":["SMTP.SendAsApp"]}"#));
        let app = app.unwrap();
        assert_eq!((app.id.as_str(), app.object.as_deref(), app.sends), ("a", Some("o"), true));
        assert!(!application(&token(r#"{"appid":"a"}"#)).unwrap().sends);
        for person in [r#"{"appid":"a","scp":"SMTP.Send"}"#, r#"{"appid":"a","upn":"b@c"}"#] {
            assert!(application(&token(person)).is_none(), "{person}");
        }
    }

    #[test]
    fn audience_permission_and_end_are_told() {
        let app = r#""aud":"https://outlook.office365.com","roles":["SMTP.SendAsApp"]"#;
        for (claims, outcome, found, remedy) in [
            (
                format!("{{{app},\"exp\":99999999999}}"),
                Outcome::Ok,
                "allows SMTP.SendAsApp, good for ",
                "",
            ),
            (format!("{{{app},\"exp\":1000}}"), Outcome::Failed, ", ended ", "clock"),
            (
                r#"{"aud":"https://graph.microsoft.com","scp":"SMTP.Send"}"#.into(),
                Outcome::Warning,
                "made out to https://graph.microsoft.com",
                "/.default",
            ),
            (
                r#"{"aud":"https://outlook.office365.com/","scp":"Mail.Read SMTP.Send.All"}"#
                    .into(),
                Outcome::Warning,
                "allows Mail.Read SMTP.Send.All",
                "SMTP.SendAsApp",
            ),
            (
                r#"{"aud":"https://outlook.office365.com","scp":"Mail.Read SMTP.Send"}"#.into(),
                Outcome::Ok,
                "allows Mail.Read SMTP.Send",
                "",
            ),
        ] {
            let finding = examine(&token(&claims));
            assert_eq!(finding.outcome, outcome, "{claims}: {finding:?}");
            assert!(finding.found.contains(found), "{finding:?}");
            assert!(finding.remedy.join(" ").contains(remedy), "{finding:?}");
            assert_eq!(finding.remedy.is_empty(), outcome == Outcome::Ok, "{finding:?}");
        }
        let finding = examine("opaque-secret");
        assert_eq!(finding.outcome, Outcome::Warning);
        assert!(!format!("{finding:?}").contains("opaque-secret"));
    }
}
