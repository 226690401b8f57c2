//! `[mailbox.oauth]`: where tokens come from, with which defaults, and what is refused.

use std::fs;

use openssl::{
    asn1::Asn1Time,
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    rsa::Rsa,
    x509::X509,
};
use secrecy::ExposeSecret as _;
use smtp_uplift::config::{ClientProof, Loaded, MailboxAuth, OAuth, OAuthFlow, TokenSource};
use tempfile::TempDir;

use super::{MINIMAL, accepted, effective::written_back, folder, parse_in, pem, refused, set_mode};

/// The minimal configuration with `[mailbox.oauth]` in place of the password; its keys begin in line 8.
fn text(keys: &str) -> String {
    MINIMAL.replace("password = { file = \"pw\" }", &format!("[mailbox.oauth]\n{keys}"))
}

/// As [`text`], with what every application has.
fn app(keys: &str) -> String {
    text(&format!("tenant = \"contoso.test\"\nclient_id = \"app-1\"\n{keys}"))
}

fn oauth(loaded: &Loaded) -> OAuth {
    match &loaded.config.mailboxes[0].auth {
        MailboxAuth::XOAuth2 { token: TokenSource::OAuth(oauth) } => oauth.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_application_with_a_secret() {
    let loaded =
        accepted(&app("client_secret = { file = \"token\" }\nclient_secret_expires = 2999-05-31"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let oauth = oauth(&loaded);
    assert_eq!(oauth.flow, OAuthFlow::ClientCredentials);
    assert_eq!((oauth.tenant.as_str(), oauth.client_id.as_str()), ("contoso.test", "app-1"));
    assert!(matches!(oauth.client, Some(ClientProof::Secret(_))));
    assert_eq!(oauth.token_url, "https://login.microsoftonline.com/contoso.test/oauth2/v2.0/token");
    assert_eq!(oauth.scope, "https://outlook.office365.com/.default");
    assert!(oauth.refresh_token.is_none());
    assert_eq!(oauth.client_secret_expires, Some(jiff::civil::date(2999, 5, 31)));
}

#[test]
fn another_tenant_in_the_address_of_the_endpoint_is_told() {
    let url = |tenant| {
        let url = format!("https://login.test/{tenant}/oauth2/v2.0/token");
        accepted(&app(&format!("client_secret = {{ file = \"token\" }}\ntoken_url = \"{url}\"")))
    };
    assert!(url("contoso.test").warnings.is_empty());
    let warned = &url("fabrikam.test").warnings[0];
    assert_eq!(warned.key, "mailbox.oauth.tenant");
    assert!(warned.reason.contains("https://login.test/fabrikam.test/"), "{warned:?}");
}

#[test]
fn an_application_with_a_certificate() {
    let folder = folder();
    let keys = "certificate = \"client.crt\"\nprivate_key = { file = \"client.key\" }";
    let loaded = parse_in(&folder, &app(keys)).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let oauth = oauth(&loaded);
    assert_eq!(oauth.flow, OAuthFlow::ClientCredentials);
    let Some(ClientProof::Certificate { certificate, private_key }) = oauth.client else {
        panic!("{oauth:?}")
    };
    assert_eq!(certificate, folder.path().join("client.crt"));
    assert_eq!(private_key.load_text().unwrap().expose_secret(), pem().1);
    assert!(!format!("{loaded:?}").contains("PRIVATE KEY"));
}

#[test]
fn flows_follow_from_what_is_given() {
    for (keys, flow, proves) in [
        ("client_secret = { file = \"token\" }", OAuthFlow::ClientCredentials, true),
        ("flow = \"device-code\"", OAuthFlow::DeviceCode, false),
        (
            "flow = \"device-code\"\nclient_secret = { file = \"token\" }",
            OAuthFlow::DeviceCode,
            true,
        ),
        ("flow = \"refresh-token\"", OAuthFlow::RefreshToken, false),
        ("refresh_token = { file = \"token\" }", OAuthFlow::RefreshToken, false),
    ] {
        let oauth = oauth(&accepted(&app(keys)));
        assert_eq!((oauth.flow, oauth.client.is_some()), (flow, proves), "{keys}");
        assert_eq!(oauth.refresh_token.is_some(), keys.contains("refresh_token"), "{keys}");
    }
}

#[test]
#[rustfmt::skip] // a table, a row a line
fn each_cloud_has_its_own_names() {
    for (cloud, login, smarthost, own, delegated) in [
        ("global", "login.microsoftonline.com", "smtp.office365.com", "outlook.office365.com", "outlook.office.com"),
        ("gcc-high", "login.microsoftonline.us", "smtp.office365.us", "outlook.office365.us", "outlook.office365.us"),
        ("dod", "login.microsoftonline.us", "outlook-dod.office365.us", "outlook-dod.office365.us", "outlook-dod.office365.us"),
        ("china", "login.partner.microsoftonline.cn", "smtp.partner.outlook.cn", "partner.outlook.cn", "partner.outlook.cn"),
    ] {
        for (keys, scope) in [
            ("client_secret = { file = \"token\" }", format!("https://{own}/.default")),
            ("flow = \"device-code\"", format!("https://{delegated}/SMTP.Send offline_access")),
        ] {
            let loaded = accepted(&app(&format!("cloud = \"{cloud}\"\n{keys}")));
            assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
            let oauth = oauth(&loaded);
            assert_eq!(oauth.token_url, format!("https://{login}/contoso.test/oauth2/v2.0/token"));
            assert_eq!(oauth.scope, scope);
            let mailbox = &loaded.config.mailboxes[0];
            assert_eq!(mailbox.smarthost.host, smarthost);
            assert!(mailbox.smarthost.is_exchange_online());
        }
    }
}

#[test]
fn what_is_said_goes_before_the_cloud() {
    let loaded = accepted(&text(
        "client_id = \"app-1\"\nclient_secret = { file = \"token\" }\ncloud = \"dod\"\n\
         token_url = \"http://[::1]:8080/token?a=b\"\nscope = \"a b\"\n[smarthost]\nhost = \"localhost\"",
    ));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let oauth = oauth(&loaded);
    assert_eq!(oauth.tenant, "");
    assert_eq!(oauth.token_url, "http://[::1]:8080/token?a=b");
    assert_eq!(oauth.scope, "a b");
    assert_eq!(loaded.config.mailboxes[0].smarthost.host, "localhost");
}

#[test]
#[rustfmt::skip] // a table, a row a line
fn what_does_not_fit_is_refused() {
    let secret = "client_secret = { file = \"token\" }";
    let pair = "certificate = \"client.crt\"\nprivate_key = { file = \"client.key\" }";
    let url = |url: &str| app(&format!("{secret}\ntoken_url = \"{url}\""));
    for (text, wanted) in [
        (app(""), "7: mailbox.oauth.flow: missing; for example flow = \"client-credentials\" with client_secret or certificate, or flow = "),
        (app("flow = \"password\""), "10: mailbox.oauth.flow: \"password\" is not one of client-credentials, device-code, refresh-token; "),
        (app("flow = \"client-credentials\""), "7: mailbox.oauth.client_secret: missing: with client-credentials the application proves who it is; add client_secret"),
        (text(&format!("client_id = \"a\"\n{secret}")), "7: mailbox.oauth.tenant: missing; for example tenant = "),
        (text(&format!("tenant = \"a\"\n{secret}")), "7: mailbox.oauth.client_id: missing; for example client_id = "),
        (text(&format!("tenant = \"a/../b\"\nclient_id = \"a\"\n{secret}")), "8: mailbox.oauth.tenant: \"a/../b\" is not the id or a domain of a tenant; "),
        (text(&format!("tenant = \"a\"\nclient_id = \"a b&c\"\n{secret}")), "9: mailbox.oauth.client_id: \"a b&c\" is not the id of an application; "),
        (app(&format!("{secret}\n{pair}")), "10: mailbox.oauth.client_secret: the application proves itself with a certificate already; remove one of the two"),
        (app("certificate = \"client.crt\""), "7: mailbox.oauth.private_key: missing; for example private_key = { file = \"app.key\" }"),
        (app("private_key = { file = \"client.key\" }\nflow = \"client-credentials\""), "7: mailbox.oauth.certificate: missing; for example certificate = \"app.crt\""),
        (app(&format!("{secret}\nclient_secret_expires = \"2027-05-31\"")), "11: mailbox.oauth.client_secret_expires: expected a date without quotes, found a string; for example client_secret_expires = 2027-05-31"),
        (app(&format!("{secret}\nclient_secret_expires = 2027-05-31T10:00:00")), "11: mailbox.oauth.client_secret_expires: it is not a date alone; "),
        (app(&format!("{secret}\nflow = \"device-code\"\nrefresh_token = {{ file = \"pw\" }}")), "12: mailbox.oauth.refresh_token: used with flow = \"refresh-token\" only; remove it, or write flow"),
        (app(&format!("{secret}\ncloud = \"gcc\"")), "11: mailbox.oauth.cloud: \"gcc\" is not one of global, gcc-high, dod, china; "),
        (app(&format!("{secret}\nscope = \"a  b\"")), "11: mailbox.oauth.scope: \"a  b\" is not a scope; for example scope = \"https://outlook.office365.com/.default\""),
        (url("http://login.example/token"), "11: mailbox.oauth.token_url: secrets would go to login.example in the clear: http is for loopback addresses only; write https"),
        (url("https://user:sesame@login.example/token"), "11: mailbox.oauth.token_url: there is a login in it; "),
        (url("https://login.example/token#a"), "11: mailbox.oauth.token_url: there is a # in it; "),
        (url("ftp://login.example/token"), "11: mailbox.oauth.token_url: it is not an address of the web; "),
        (url("login.example/token"), "11: mailbox.oauth.token_url: it is not an address of the web; "),
        (url("https://login.example/a b"), "11: mailbox.oauth.token_url: it is not an address of the web; "),
        (text("token = { file = \"token\" }\nscope = \"a\""), "9: mailbox.oauth.scope: token is a ready access token; remove it, or remove token"),
        (app(&format!("{secret}\ntenat = \"a\"")), "11: mailbox.oauth.tenat: unknown key; did you mean tenant?"),
        (app("client_secret = { file = \"none\" }"), "/none cannot be read: "),
    ] {
        let problems = refused(&text);
        assert_eq!(problems.len(), 1, "{problems:#?}\n{text}");
        assert!(problems[0].contains(wanted), "{wanted} in {}", problems[0]);
        assert!(!problems[0].contains("sesame"), "{problems:?}");
    }
    let all = text(&format!("token = {{ file = \"token\" }}\nflow = \"device-code\"\ntenant = \"a\"\nclient_id = \"a\"\n{secret}\n\
        client_secret_expires = 2999-05-31\nrefresh_token = {{ file = \"pw\" }}\ncloud = \"dod\"\ntoken_url = \"https://a/\"\nscope = \"a\""));
    let problems = refused(&all);
    assert_eq!(problems.len(), 9, "{problems:#?}");
    assert!(problems.iter().all(|problem| problem.contains(": token is a ready access token; ")), "{problems:#?}");
}

#[test]
#[rustfmt::skip] // a table, a row a line
fn what_works_but_should_not_stay_so() {
    let secret = "client_secret = { file = \"token\" }";
    for (keys, wanted) in [
        (format!("{secret}\nclient_secret_expires = 2024-05-31"), "11: mailbox.oauth.client_secret_expires: the client secret has ended; make a new one"),
        ("flow = \"device-code\"\nclient_secret_expires = 2999-05-31".into(), "11: mailbox.oauth.client_secret_expires: there is no client_secret; remove it"),
        ("flow = \"device-code\"\nscope = \"https://outlook.office.com/SMTP.Send\"".into(), "11: mailbox.oauth.scope: without offline_access somebody has to sign in again each hour; add offline_access"),
        (format!("{secret}\ncloud = \"gcc-high\"\n[smarthost]\nhost = \"SMTP.office365.com\""), "11: mailbox.oauth.cloud: tokens are asked for in the cloud gcc-high, and SMTP.office365.com is a server of global; write cloud = \"global\", or another host"),
        (format!("{secret}\n[mailbox.smarthost]\nhost = \"smtp.partner.outlook.cn\""), "7: mailbox.oauth.cloud: tokens are asked for in the cloud global, and smtp.partner.outlook.cn is a server of china"),
    ] {
        let warnings = accepted(&app(&keys)).warnings;
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        assert!(warnings[0].to_string().contains(wanted), "{wanted} in {}", warnings[0]);
    }
}

/// Writes a certificate for a key that begins and ends at these seconds, and the key.
fn write(folder: &TempDir, key: &PKey<Private>, begin: i64, end: i64) {
    let mut builder = X509::builder().unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&Asn1Time::from_unix(begin).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::from_unix(end).unwrap()).unwrap();
    builder.sign(key, MessageDigest::sha256()).unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("app.crt"), builder.build().to_pem().unwrap()).unwrap();
    fs::write(path("app.key"), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    set_mode(&path("app.key"), 0o600);
}

#[test]
fn a_certificate_is_looked_at_with_its_key() {
    const FAR: i64 = 4_000_000_000;
    let text = app("certificate = \"app.crt\"\nprivate_key = { file = \"app.key\" }");
    let folder = folder();
    let ours = PKey::private_key_from_pem(pem().1.as_bytes()).unwrap();
    let path = |name: &str| folder.path().join(name);
    let problem = || {
        let problems = parse_in(&folder, &text).unwrap_err().problems;
        assert_eq!(problems.len(), 1, "{problems:#?}");
        problems[0].to_string().replace(&folder.path().display().to_string(), "FOLDER")
    };

    write(&folder, &ours, 0, FAR);
    assert!(parse_in(&folder, &text).unwrap().warnings.is_empty());

    // A relay has other mailboxes that may be well, so these do not keep it from starting.
    for (begin, end, key, wanted) in [
        (
            0,
            1_700_000_000,
            "mailbox.oauth.certificate",
            "app.crt has ended on Nov 14 22:13:20 2023 GMT; make a new one, and upload it to",
        ),
        (
            FAR,
            FAR + 1,
            "mailbox.oauth.certificate",
            "app.crt begins on Oct  2 07:06:40 2096 GMT only; look whether this machine's clock",
        ),
    ] {
        write(&folder, &ours, begin, end);
        let warnings = parse_in(&folder, &text).unwrap().warnings;
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        let warning = warnings[0].to_string();
        assert!(warnings[0].key == key && warning.contains(wanted), "{warning}");
    }

    let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let curved = PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap();
    write(&folder, &curved, 0, FAR);
    assert!(problem().contains(":11: mailbox.oauth.private_key: it is no RSA key, and Microsoft takes no other; openssl req "));

    fs::write(path("app.key"), &pem().1).unwrap();
    assert!(problem().contains(":11: mailbox.oauth.private_key: the key does not belong to the certificate FOLDER/app.crt; "));

    write(&folder, &ours, 0, FAR);
    let sealed = Rsa::private_key_from_pem(pem().1.as_bytes()).unwrap();
    let cipher = openssl::symm::Cipher::aes_128_cbc();
    let sealed = sealed.private_key_to_pem_passphrase(cipher, b"sesame").unwrap();
    for no_key in [&sealed[..], b"-----BEGIN nothing\n", pem().0.as_bytes()] {
        fs::write(path("app.key"), no_key).unwrap();
        assert!(problem().contains(":11: mailbox.oauth.private_key: no private key without a passphrase in PEM form; openssl pkey "));
    }
    fs::write(path("app.key"), [0x30, 0x82, 0xff]).unwrap();
    assert!(problem().contains(
        "FOLDER/app.key: the secret is not text; a key in PEM form begins with -----BEGIN"
    ));

    write(&folder, &ours, 0, FAR);
    fs::write(path("app.crt"), ours.private_key_to_der().unwrap()).unwrap();
    assert!(problem().contains(
        ":10: mailbox.oauth.certificate: FOLDER/app.crt: no certificate in PEM form; openssl x509 "
    ));
    fs::remove_file(path("app.crt")).unwrap();
    assert!(
        problem().contains(
            ":10: mailbox.oauth.certificate: FOLDER/app.crt cannot be read: No such file"
        )
    );
}

#[test]
fn it_reads_back_as_it_was() {
    let folder = folder();
    let pair = "certificate = \"client.crt\"\nprivate_key = { file = \"client.key\" }";
    for keys in [
        "client_secret = { file = \"token\" }\nclient_secret_expires = 2999-05-31",
        pair,
        "flow = \"device-code\"\ncloud = \"gcc-high\"",
        "flow = \"refresh-token\"\nrefresh_token = { file = \"token\" }\ncloud = \"china\"",
        "flow = \"device-code\"\nclient_secret = { file = \"token\" }\nscope = \"a b\"",
    ] {
        written_back(&folder, &app(keys));
    }
    let without_tenant = format!("client_id = \"a\"\ntoken_url = \"https://login.test/t\"\n{pair}");
    let effective = written_back(&folder, &text(&without_tenant));
    assert!(!effective.contains("tenant"), "{effective}");
    // A key that stands in the configuration itself, several lines of it, is not told.
    let literal = format!("certificate = \"client.crt\"\nprivate_key = '''\n{}'''", pem().1);
    let loaded = parse_in(&folder, &app(&literal)).unwrap();
    let effective = loaded.config.effective();
    assert!(!effective.contains("PRIVATE"), "{effective}");
    assert!(effective.contains("private_key = { redacted = true }"), "{effective}");
}
