//! `[mailbox.oauth]`: where access tokens come from.

use jiff::{Zoned, civil::Date};
use reqwest::Url;
use secrecy::ExposeSecret as _;
use toml::de::DeValue;

use super::{is_domain, smarthost::is_loopback};
use crate::config::{
    ClientProof, OAuth, OAuthFlow, Secret, TokenSource, certificate,
    raw::{Complaint, Table, mismatch},
    secrets::{secret, secret_text},
    value,
    word::Word,
};

/// Microsoft's clouds, each with an identity platform and an Exchange Online of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Cloud {
    /// The worldwide one, GCC too.
    #[default]
    Global,
    /// GCC High.
    GccHigh,
    /// That of the Department of Defense.
    Dod,
    /// That of 21Vianet.
    China,
}

impl Word for Cloud {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("global", Self::Global),
        ("gcc-high", Self::GccHigh),
        ("dod", Self::Dod),
        ("china", Self::China),
    ];
}

impl Cloud {
    /// The server that its mailboxes submit to.
    pub(super) fn smarthost(self) -> &'static str {
        match self {
            Self::Global => "smtp.office365.com",
            Self::GccHigh => "smtp.office365.us",
            Self::Dod => "outlook-dod.office365.us",
            Self::China => "smtp.partner.outlook.cn",
        }
    }

    /// The cloud whose mailboxes submit to this server.
    fn of(host: &str) -> Option<Self> {
        let clouds = Self::WORDS.iter().map(|(_, cloud)| *cloud);
        clouds.into_iter().find(|cloud| cloud.smarthost().eq_ignore_ascii_case(host))
    }

    fn token_url(self, tenant: &str) -> String {
        let host = match self {
            Self::Global => "login.microsoftonline.com",
            Self::GccHigh | Self::Dod => "login.microsoftonline.us",
            Self::China => "login.partner.microsoftonline.cn",
        };
        format!("https://{host}/{tenant}/oauth2/v2.0/token")
    }

    /// An application asks for all that it was granted, a person for sending and for a refresh token.
    fn scope(self, flow: OAuthFlow) -> String {
        let own = flow == OAuthFlow::ClientCredentials;
        let resource = match self {
            Self::Global if own => "outlook.office365.com",
            Self::Global => "outlook.office.com",
            Self::GccHigh => "outlook.office365.us",
            Self::Dod => "outlook-dod.office365.us",
            Self::China => "partner.outlook.cn",
        };
        match own {
            true => format!("https://{resource}/.default"),
            false => format!("https://{resource}/SMTP.Send {OFFLINE}"),
        }
    }
}

/// Without this scope there is no refresh token.
const OFFLINE: &str = "offline_access";

const TENANT: &str = "contoso.onmicrosoft.com";
const CLIENT_ID: &str = "6731de76-14a6-49ae-97bc-6eba6914391e";
const CERTIFICATE: &str = "app.crt";

/// Where tokens come from, and in which cloud.
pub(super) fn source(table: &mut Table<'_>) -> (Option<TokenSource>, Cloud) {
    let token = secret(table, "token");
    let keys = Keys::read(table);
    let cloud = keys.cloud;
    if !table.has("token") {
        return (keys.resolve(table).map(TokenSource::OAuth), cloud);
    }
    for key in KEYS.into_iter().filter(|key| table.has(key)) {
        table.problem(key, "token is a ready access token", "remove it, or remove token");
    }
    (token.map(TokenSource::Ready), cloud)
}

/// A token of one cloud is nothing to the servers of another.
pub(super) fn other_cloud(table: &Table<'_>, cloud: Cloud, host: &str) {
    let other = Cloud::of(host).filter(|other| *other != cloud);
    let asked = !table.has("token") && !table.has("token_url");
    if let Some(other) = other.filter(|_| asked) {
        let (cloud, other) = (cloud.word(), other.word());
        table.warning(
            "cloud",
            format!("tokens are asked for in the cloud {cloud}, and {host} is a server of {other}"),
            format!("write cloud = {other:?}, or another host"),
        );
    }
}

/// All that asking for tokens takes, and so all that a ready one does not need.
const KEYS: [&str; 11] = [
    "flow",
    "tenant",
    "client_id",
    "client_secret",
    "client_secret_expires",
    "certificate",
    "private_key",
    "refresh_token",
    "cloud",
    "token_url",
    "scope",
];

struct Keys {
    flow: Option<OAuthFlow>,
    tenant: Option<String>,
    client_id: Option<String>,
    proof: Option<ClientProof>,
    client_secret_expires: Option<Date>,
    refresh_token: Option<Secret>,
    cloud: Cloud,
    token_url: Option<String>,
    scope: Option<String>,
}

impl Keys {
    fn read(table: &mut Table<'_>) -> Self {
        Self {
            flow: table.one_of("flow", &[]),
            tenant: table.read("tenant", tenant),
            client_id: table.read("client_id", client_id),
            proof: proof(table),
            client_secret_expires: table.read("client_secret_expires", date),
            refresh_token: secret(table, "refresh_token"),
            cloud: table.one_of("cloud", &[]).unwrap_or_default(),
            token_url: table.read("token_url", token_url),
            scope: table.read("scope", scope),
        }
    }

    fn resolve(self, table: &Table<'_>) -> Option<OAuth> {
        let flow = self.flow(table);
        if !table.has("token_url") {
            table.require("tenant", &format!("tenant = {TENANT:?}"));
        }
        table.require("client_id", &format!("client_id = {CLIENT_ID:?}"));
        self.expiry(table);
        let flow = flow?;
        if flow == OAuthFlow::ClientCredentials
            && !["client_secret", "certificate", "private_key"].iter().any(|key| table.has(key))
        {
            table.problem(
                "client_secret",
                "missing: with client-credentials the application proves who it is",
                "add client_secret = { file = \"client-secret\" }, or certificate and private_key",
            );
        }
        if flow != OAuthFlow::RefreshToken && table.has("refresh_token") {
            let hint = "remove it, or write flow = \"refresh-token\"";
            table.problem("refresh_token", "used with flow = \"refresh-token\" only", hint);
        }
        if flow != OAuthFlow::ClientCredentials
            && !table.has("token_url")
            && self.scope.as_ref().is_some_and(|it| !it.split(' ').any(|scope| scope == OFFLINE))
        {
            let reason = "without offline_access somebody has to sign in again each hour";
            table.warning("scope", reason, format!("add {OFFLINE}, or remove scope"));
        }
        let tenant = self.tenant.unwrap_or_default();
        if let Some(url) = self.token_url.as_ref().filter(|url| is_of_another(url, &tenant)) {
            let reason = format!("not used: tokens are asked for at {url}");
            table.warning(
                "tenant",
                reason,
                "write the same tenant into token_url, or remove one of them",
            );
        }
        Some(OAuth {
            flow,
            token_url: self.token_url.unwrap_or_else(|| self.cloud.token_url(&tenant)),
            tenant,
            client_id: self.client_id?,
            client: self.proof,
            scope: self.scope.unwrap_or_else(|| self.cloud.scope(flow)),
            refresh_token: self.refresh_token,
            client_secret_expires: self.client_secret_expires,
        })
    }

    /// What is said, or what the other keys are for.
    fn flow(&self, table: &Table<'_>) -> Option<OAuthFlow> {
        if table.has("flow") {
            return self.flow;
        }
        if table.has("refresh_token") {
            return Some(OAuthFlow::RefreshToken);
        }
        if table.has("client_secret") || table.has("certificate") {
            return Some(OAuthFlow::ClientCredentials);
        }
        let example = "flow = \"client-credentials\" with client_secret or certificate, or flow = \"device-code\" with smtp-uplift login";
        table.require("flow", example);
        None
    }

    fn expiry(&self, table: &Table<'_>) {
        let Some(end) = self.client_secret_expires else { return };
        if !table.has("client_secret") {
            table.warning("client_secret_expires", "there is no client_secret", "remove it");
        } else if end < Zoned::now().date() {
            let hint = "make a new one in the application's registration, and write its end here";
            table.warning("client_secret_expires", "the client secret has ended", hint);
        }
    }
}

/// A secret, or a certificate with its key.
fn proof(table: &mut Table<'_>) -> Option<ClientProof> {
    let client_secret = secret(table, "client_secret");
    let certificate = table.file("certificate", CERTIFICATE);
    let private_key = secret_text(table, "private_key");
    if !table.has("certificate") && !table.has("private_key") {
        return client_secret.map(ClientProof::Secret);
    }
    if table.has("client_secret") {
        let reason = "the application proves itself with a certificate already";
        table.problem("client_secret", reason, "remove one of the two");
    }
    table.require("certificate", &format!("certificate = {CERTIFICATE:?}"));
    table.require("private_key", "private_key = { file = \"app.key\" }");
    let (certificate, private_key) = (certificate?, private_key?);
    // It was read a moment ago, with its own problem if it could not be.
    let pem = private_key.load_text().ok()?;
    let renew = "make a new one, and upload it to the application's registration first";
    let key = certificate::pair(
        table,
        ("certificate", &certificate),
        ("private_key", pem.expose_secret().as_bytes()),
        renew,
    )?;
    if key.rsa().is_err() {
        let hint = "openssl req -x509 -newkey rsa:2048 -nodes -keyout app.key -out app.crt -days 365 -subj /CN=smtp-uplift";
        table.problem("private_key", "it is no RSA key, and Microsoft takes no other", hint);
    }
    Some(ClientProof::Certificate { certificate, private_key })
}

/// A tenant's id or one of its domains: it becomes part of an address.
fn tenant(value: &DeValue<'_>) -> Result<String, Complaint> {
    let hint = format!("for example tenant = {TENANT:?}, or the tenant's id");
    let tenant = value::text(value, &hint)?;
    if is_domain(&tenant) {
        return Ok(tenant);
    }
    Err(Complaint::new(format!("{tenant:?} is not the id or a domain of a tenant"), hint))
}

fn client_id(value: &DeValue<'_>) -> Result<String, Complaint> {
    let hint =
        format!("for example client_id = {CLIENT_ID:?}, as the application's overview shows it");
    let id = value::text(value, &hint)?;
    let plain =
        |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_' | b'~');
    if id.bytes().all(plain) {
        return Ok(id);
    }
    Err(Complaint::new(format!("{id:?} is not the id of an application"), hint))
}

fn date(value: &DeValue<'_>) -> Result<Date, Complaint> {
    let hint = "for example client_secret_expires = 2027-05-31";
    let DeValue::Datetime(datetime) = value else {
        return Err(mismatch("a date without quotes", value, hint));
    };
    let date = datetime.date.filter(|_| datetime.time.is_none());
    date.and_then(|date| {
        let (month, day) = (i8::try_from(date.month).ok()?, i8::try_from(date.day).ok()?);
        Date::new(i16::try_from(date.year).ok()?, month, day).ok()
    })
    .ok_or_else(|| Complaint::new("it is not a date alone", hint))
}

/// Whether this asks the identity platform for tokens of another tenant.
fn is_of_another(url: &str, tenant: &str) -> bool {
    url.strip_suffix("/oauth2/v2.0/token").is_some_and(|rest| !rest.ends_with(tenant))
}

/// Secrets and tokens go there. It is not quoted, since it might hold a password.
fn token_url(value: &DeValue<'_>) -> Result<String, Complaint> {
    let hint = format!("for example token_url = {:?}", Cloud::default().token_url(TENANT));
    let text = value::text(value, &hint)?;
    let no_url = || Complaint::new("it is not an address of the web", &hint);
    let url = Url::parse(&text).map_err(|_| no_url())?;
    let host = url.host_str().filter(|_| !text.contains(char::is_whitespace)).ok_or_else(no_url)?;
    if !url.username().is_empty() || url.password().is_some() {
        let hint = "write client_id and client_secret beside it";
        return Err(Complaint::new("there is a login in it", hint));
    }
    // RFC 6749 section 3.2.
    if url.fragment().is_some() {
        return Err(Complaint::new("there is a # in it", hint));
    }
    match url.scheme() {
        "https" => Ok(text),
        "http" if is_loopback(host.trim_matches(['[', ']'])) => Ok(text),
        "http" => Err(Complaint::new(
            format!("secrets would go to {host} in the clear: http is for loopback addresses only"),
            "write https",
        )),
        _ => Err(no_url()),
    }
}

/// One scope or several, with a blank between them (RFC 6749 section 3.3).
fn scope(value: &DeValue<'_>) -> Result<String, Complaint> {
    let hint =
        format!("for example scope = {:?}", Cloud::default().scope(OAuthFlow::ClientCredentials));
    let text = value::text(value, &hint)?;
    let token = |scope: &str| {
        let plain = |octet: u8| octet.is_ascii_graphic() && !matches!(octet, b'"' | b'\\');
        !scope.is_empty() && scope.bytes().all(plain)
    };
    if text.split(' ').all(token) {
        return Ok(text);
    }
    Err(Complaint::new(format!("{text:?} is not a scope"), hint))
}
