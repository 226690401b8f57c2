//! `[[mailbox]]` and `[mailbox.oauth]`.

use toml::de::DeValue;

use crate::config::{
    Mailbox, MailboxAuth, Smarthost, TokenSource,
    raw::{Complaint, LATER, Table},
    secrets::secret,
    value,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    XOAuth2,
    Login,
    Plain,
    None,
}

/// Exchange Online answers the fourth connection of a mailbox with 432 4.3.2.
const EXCHANGE_CONNECTIONS: usize = 3;

pub(super) fn mailboxes(root: &mut Table<'_>, smarthost: &Smarthost) -> Vec<Mailbox> {
    let tables = root.sections("mailbox");
    if tables.is_empty() && !root.has("mailbox") {
        root.problem(
            "mailbox",
            "there is none to send with",
            "add [[mailbox]] with address and password or [mailbox.oauth]",
        );
    }
    let mut mailboxes = Vec::new();
    for (index, mut table) in tables.into_iter().enumerate() {
        if index > 0 {
            table.complain_here(Complaint::new(
                format!("more than one mailbox is {LATER}"),
                "remove all but one",
            ));
        }
        let mailbox = read(&mut table, smarthost);
        table.finish();
        mailboxes.extend(mailbox);
    }
    mailboxes
}

fn read(table: &mut Table<'_>, smarthost: &Smarthost) -> Option<Mailbox> {
    const EXAMPLE: &str = "address = \"scanner@example.com\"";
    let address =
        table.read("address", |value| mail_address(value, &format!("for example {EXAMPLE}")));
    table.require("address", EXAMPLE);
    let username = table.text("username", "scanner@example.onmicrosoft.com");
    let auth = auth(table);
    let max_connections = table.number("max_connections", EXCHANGE_CONNECTIONS, 1..=1_000);
    let exchange = smarthost.host.to_ascii_lowercase().ends_with(".office365.com");
    if exchange && let Some(address) = address.as_deref().filter(|address| is_placeholder(address))
    {
        let reason = format!("{address} is a placeholder");
        table.warning("address", reason, "write the address of the mailbox that sends");
    }
    if exchange && max_connections > EXCHANGE_CONNECTIONS {
        table.warning(
            "max_connections",
            "Exchange Online takes three at a time",
            "write max_connections = 3",
        );
    }
    for key in ["messages_per_minute", "recipients_per_day"] {
        if table.number(key, 0, 0..=u32::MAX) != 0 {
            table.problem(key, LATER, format!("write {key} = 0"));
        }
    }
    let send_as = table
        .list("send_as", |value| mail_address(value, "for example send_as = [\"*@example.com\"]"));
    table.not_yet("message_size");
    table.not_yet("smarthost");
    let address = address?;
    Some(Mailbox {
        username: username.unwrap_or_else(|| address.clone()),
        address,
        auth: auth?,
        max_connections,
        messages_per_minute: 0,
        recipients_per_day: 0,
        message_size: None,
        send_as: send_as.unwrap_or_default(),
        smarthost: smarthost.clone(),
    })
}

fn auth(table: &mut Table<'_>) -> Option<MailboxAuth> {
    let mechanism = table.word(
        "auth",
        &[
            ("xoauth2", Ok(Mechanism::XOAuth2)),
            ("login", Ok(Mechanism::Login)),
            ("plain", Ok(Mechanism::Plain)),
            ("none", Ok(Mechanism::None)),
        ],
    );
    let password = secret(table, "password");
    let token = table.section("oauth").and_then(token);
    let (has_password, has_oauth) = (table.has("password"), table.has("oauth"));
    let mechanism = match mechanism {
        Some(mechanism) => mechanism,
        None if table.has("auth") => return None,
        None if has_oauth => Mechanism::XOAuth2,
        None if has_password => Mechanism::Login,
        None => {
            table.problem(
                "auth",
                "there is nothing to log in with",
                "add password or [mailbox.oauth], or write auth = \"none\"",
            );
            return None;
        }
    };
    let takes_password = matches!(mechanism, Mechanism::Login | Mechanism::Plain);
    if takes_password && !has_password {
        table.problem(
            "password",
            "missing: this auth logs in with a password",
            "for example password = { file = \"/run/secrets/pw\" }",
        );
    }
    if mechanism == Mechanism::XOAuth2 && !has_oauth {
        table.problem(
            "oauth.token",
            "missing: xoauth2 logs in with a token",
            "add [mailbox.oauth] with token = { file = \"token\" }",
        );
    }
    if has_password && !takes_password {
        table.warning("password", "not used with this auth", "remove it");
    }
    if has_oauth && mechanism != Mechanism::XOAuth2 {
        table.warning("oauth", "used with auth = \"xoauth2\" only", "remove it");
    }
    match mechanism {
        Mechanism::XOAuth2 => token.map(|token| MailboxAuth::XOAuth2 { token }),
        Mechanism::Login => password.map(|password| MailboxAuth::Login { password }),
        Mechanism::Plain => password.map(|password| MailboxAuth::Plain { password }),
        Mechanism::None => Some(MailboxAuth::None),
    }
}

fn token(mut oauth: Table<'_>) -> Option<TokenSource> {
    let token = secret(&mut oauth, "token");
    oauth.require("token", "token = { file = \"token\" }");
    for key in [
        "flow",
        "tenant",
        "client_id",
        "client_secret",
        "client_secret_expires",
        "certificate",
        "private_key",
        "cloud",
        "token_url",
        "scope",
    ] {
        if oauth.take(key).is_some() {
            oauth.problem(
                key,
                LATER,
                "remove it; token = { file = \"…\" } takes a ready access token",
            );
        }
    }
    oauth.finish();
    token.map(TokenSource::Ready)
}

/// Whether nobody can have this address (RFC 2606).
fn is_placeholder(address: &str) -> bool {
    let domain = address.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
    ["example", "example.com", "example.net", "example.org"].iter().any(|reserved| {
        domain.strip_suffix(reserved).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

/// Enough to catch a slip; the smarthost is the judge of the rest.
fn mail_address(value: &DeValue<'_>, hint: &str) -> Result<String, Complaint> {
    let address = value::text(value, hint)?;
    let well_formed = address.rsplit_once('@').is_some_and(|(local, domain)| {
        !local.is_empty()
            && !domain.is_empty()
            && !address.contains(|c: char| c.is_whitespace() || matches!(c, '<' | '>' | ','))
    });
    if well_formed {
        return Ok(address);
    }
    Err(Complaint::new(format!("{address:?} is not an address"), hint))
}
