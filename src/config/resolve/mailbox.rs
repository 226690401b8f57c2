//! `[[mailbox]]`.

use bytesize::ByteSize;
use toml::de::DeValue;

use super::{oauth, smarthost};
use crate::{
    config::{
        Mailbox, MailboxAuth, Smarthost, TokenSource,
        raw::{Complaint, Table, nearest},
        secrets::secret,
        value,
    },
    policy::Patterns,
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
/// Exchange Online takes so many messages of a mailbox in a minute.
const EXCHANGE_MESSAGES: u32 = 30;

/// The addresses of the mailboxes, for settings that name one.
pub(super) struct Addresses(Vec<String>);

impl Addresses {
    /// The mailbox that `mailbox` of a section names, as its own section spells it.
    pub(super) fn named(&self, table: &mut Table<'_>) -> Option<String> {
        const EXAMPLE: &str = "scanner@example.com";
        let named = table.text("mailbox", EXAMPLE)?;
        let found = self.0.iter().find(|known| known.eq_ignore_ascii_case(&named));
        if found.is_none() {
            let known: Vec<_> = self.0.iter().map(String::as_str).collect();
            let hint = match (nearest(&named, &known), known.first()) {
                (Some(near), _) => format!("did you mean {near:?}?"),
                (None, Some(first)) => format!("for example mailbox = {first:?}"),
                (None, None) => "add [[mailbox]] with this address".to_owned(),
            };
            table.problem("mailbox", format!("there is no [[mailbox]] {named:?}"), hint);
        }
        found.cloned()
    }
}

/// The mailboxes, and the addresses of those too that something else is wrong with.
///
/// A smarthost that nobody has named is that of the mailbox's cloud.
pub(super) fn mailboxes(
    root: &mut Table<'_>,
    smarthost: &Smarthost,
    host_is_given: bool,
) -> (Vec<Mailbox>, Addresses) {
    let tables = root.sections("mailbox");
    if tables.is_empty() && !root.has("mailbox") {
        root.problem(
            "mailbox",
            "there is none to send with",
            "add [[mailbox]] with address and password or [mailbox.oauth]",
        );
    }
    let mut mailboxes = Vec::new();
    let mut addresses = Addresses(Vec::new());
    let mut logins = Vec::new();
    for mut table in tables {
        let address = address(&mut table, &mut addresses);
        let mailbox = read(&mut table, address, smarthost, host_is_given);
        if let Some(mailbox) = &mailbox {
            one_for_each_login(&table, mailbox, &mut logins);
        }
        table.finish();
        mailboxes.extend(mailbox);
    }
    (mailboxes, addresses)
}

fn address(table: &mut Table<'_>, taken: &mut Addresses) -> Option<String> {
    const EXAMPLE: &str = "address = \"scanner@example.com\"";
    let address =
        table.read("address", |value| mail_address(value, &format!("for example {EXAMPLE}")));
    table.require("address", EXAMPLE);
    let address = address?;
    if taken.0.iter().any(|other| other.eq_ignore_ascii_case(&address)) {
        let reason = format!("another mailbox has {address} already");
        table.problem("address", reason, "give each its own, or remove one of the two");
        return None;
    }
    taken.0.push(address.clone());
    Some(address)
}

/// Microsoft counts by the account that logs in: two mailboxes of one account would each take its limits whole.
fn one_for_each_login(table: &Table<'_>, mailbox: &Mailbox, taken: &mut Vec<[String; 2]>) {
    if matches!(mailbox.auth, MailboxAuth::None) {
        return;
    }
    let login = [&mailbox.username, &mailbox.smarthost.host].map(|part| part.to_ascii_lowercase());
    if taken.contains(&login) {
        table.problem(
            "username",
            format!(
                "another mailbox logs in as {} at {} already: the two would share its limits, and each count them alone",
                mailbox.username, mailbox.smarthost.host
            ),
            "keep one of the two, and name the other's address in its send_as; or give each an account of its own",
        );
        return;
    }
    taken.push(login);
}

fn read(
    table: &mut Table<'_>,
    address: Option<String>,
    base: &Smarthost,
    host_is_given: bool,
) -> Option<Mailbox> {
    let username = table.text("username", "scanner@example.onmicrosoft.com");
    let oauth = table.section("oauth").map(|mut oauth| {
        let (token, cloud) = oauth::source(&mut oauth);
        (oauth, token, cloud)
    });
    let mut base = base.clone();
    if let Some((_, _, cloud)) = oauth.as_ref().filter(|_| !host_is_given) {
        cloud.smarthost().clone_into(&mut base.host);
    }
    let mut own = table.section_or_empty("smarthost");
    let smarthost = smarthost::smarthost(&mut own, &base);
    own.finish();
    let token = oauth.and_then(|(oauth, token, cloud)| {
        oauth::other_cloud(&oauth, cloud, &smarthost.host);
        oauth.finish();
        token
    });
    let auth = auth(table, token);
    // Exchange Online's limits are those of mailboxes, which nobody is without a login.
    let (connections, minute, day) = match auth {
        Some(MailboxAuth::None) => (10, 0, 0),
        _ => (EXCHANGE_CONNECTIONS, 28, 10_000),
    };
    let max_connections = table.number("max_connections", connections, 1..=1_000);
    let messages_per_minute = table.number("messages_per_minute", minute, 0..=100_000);
    let recipients_per_day = table.number("recipients_per_day", day, 0..=u32::MAX);
    let most = ByteSize::b(1)..=ByteSize::gib(16);
    let message_size = table.size("message_size", ByteSize::mib(35), most);
    let message_size = table.has("message_size").then_some(message_size);
    let send_as = table
        .list("send_as", |value| mail_address(value, "for example send_as = [\"*@example.com\"]"));
    if smarthost.is_exchange_online() {
        if let Some(address) = address.as_deref().filter(|address| is_placeholder(address)) {
            let reason = format!("{address} is a placeholder");
            table.warning("address", reason, "write the address of the mailbox that sends");
        }
        if let Some(MailboxAuth::Login { .. } | MailboxAuth::Plain { .. }) = auth {
            table.warning(
                "password",
                "Exchange Online switches passwords off by default at the end of December 2026",
                "log in with [mailbox.oauth]: docs/howto/oauth.md",
            );
        }
        if !matches!(auth, Some(MailboxAuth::None)) {
            limits_of_exchange(table, max_connections, messages_per_minute);
        }
    }
    let address = address?;
    Some(Mailbox {
        username: username.unwrap_or_else(|| address.clone()),
        address,
        auth: auth?,
        max_connections,
        messages_per_minute,
        recipients_per_day,
        message_size,
        send_as: Patterns::new(send_as.unwrap_or_default()),
        smarthost,
    })
}

fn limits_of_exchange(table: &Table<'_>, max_connections: usize, messages_per_minute: u32) {
    if max_connections > EXCHANGE_CONNECTIONS {
        table.warning(
            "max_connections",
            "Exchange Online takes three at a time",
            "write max_connections = 3",
        );
    }
    if !(1..=EXCHANGE_MESSAGES).contains(&messages_per_minute) {
        table.warning(
            "messages_per_minute",
            "Exchange Online takes 30 in a minute, and slows down or refuses what is beyond",
            "write messages_per_minute = 28",
        );
    }
}

fn auth(table: &mut Table<'_>, token: Option<TokenSource>) -> Option<MailboxAuth> {
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
            "oauth",
            "missing: xoauth2 logs in with a token",
            "add [mailbox.oauth] with tenant, client_id and client_secret, or with token = { file = \"token\" }",
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

/// Whether nobody can have this address (RFC 2606).
fn is_placeholder(address: &str) -> bool {
    let domain = address.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
    ["example", "example.com", "example.net", "example.org"].iter().any(|reserved| {
        domain.strip_suffix(reserved).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

/// Enough to catch a slip; the smarthost is the judge of the rest.
pub(super) fn mail_address(value: &DeValue<'_>, hint: &str) -> Result<String, Complaint> {
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
