//! What a token endpoint means by an error (RFC 6749 section 5.2, RFC 8628 section 3.5): the `error` field decides
//! what follows, as Microsoft asks programs to; the AADSTS number only chooses what people are told. Pure.

/// The `error` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The application did not prove itself.
    InvalidClient,
    /// The application may not ask for this.
    UnauthorizedClient,
    /// The request makes no sense to the endpoint.
    InvalidRequest,
    /// The scope makes no sense to it.
    InvalidScope,
    /// The sign-in or refresh token is not good any more.
    InvalidGrant,
    /// Later.
    Unavailable,
    /// Nobody has entered the code yet.
    Pending,
    /// As before, and it was asked too often.
    SlowDown,
    /// The time for entering the code is over.
    ExpiredToken,
    /// Somebody, or a policy, has said no.
    AccessDenied,
    /// Somebody has to be asked something.
    InteractionRequired,
    /// Anything else.
    Unknown,
}

impl Code {
    /// Reads an `error` field.
    pub fn parse(error: &str) -> Self {
        match error {
            "invalid_client" => Self::InvalidClient,
            "unauthorized_client" => Self::UnauthorizedClient,
            "invalid_request"
            | "unsupported_grant_type"
            | "invalid_resource"
            | "invalid_target" => Self::InvalidRequest,
            "invalid_scope" => Self::InvalidScope,
            "invalid_grant" | "bad_verification_code" => Self::InvalidGrant,
            "temporarily_unavailable" | "server_error" => Self::Unavailable,
            "authorization_pending" => Self::Pending,
            "slow_down" => Self::SlowDown,
            "expired_token" | "code_expired" => Self::ExpiredToken,
            "access_denied" | "authorization_declined" => Self::AccessDenied,
            "interaction_required" | "login_required" | "consent_required" => {
                Self::InteractionRequired
            }
            _ => Self::Unknown,
        }
    }

    /// Whether it passes by itself, or waits for somebody.
    pub fn passes(self) -> bool {
        matches!(self, Self::Unavailable | Self::Pending | Self::SlowDown)
    }
}

/// The number that Microsoft's identity platform gives, from the text or else from `error_codes`.
pub fn aadsts(description: &str, codes: &[u32]) -> Option<u32> {
    let (_, rest) = description.split_once("AADSTS").unwrap_or_default();
    let digits: &str = &rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())];
    digits.parse().ok().or_else(|| codes.first().copied())
}

/// What an error means, and what to do about it, one step an item.
pub type Advice = (&'static str, &'static [&'static str]);

/// For people: by the number where it is known, else by the `error` field.
pub fn advice(code: Code, aadsts: Option<u32>) -> Advice {
    aadsts.and_then(by_number).unwrap_or_else(|| by_code(code))
}

/// Whether a policy of the tenant keeps people from signing in with a code on another device.
pub fn blocks_device_codes(code: Code, aadsts: Option<u32>) -> bool {
    matches!(aadsts, Some(50_097 | 50_199 | 53_000..=53_003 | 530_032..=530_036))
        || code == Code::AccessDenied && aadsts.is_none()
}

const SIGN_IN: &str = "Sign in again: smtp-uplift login MAILBOX";
const NEW_SECRET: &str = "Make a new client secret (Entra admin center, App registrations, Certificates & secrets) and write it into what \
     client_secret names: the relay takes it up by itself";
const WHOSE: &str = "Check tenant and client_id against the app registration's Overview, and cloud";
const CLOCK: &str = "Set this machine's clock, and have it kept by NTP: timedatectl shows it";
const POLICY: &str = "Ask whoever looks after Conditional Access to let this account, or this application, in from here";
const SCOPE: &str = "Take scope out of the configuration, so that it is https://outlook.office365.com/.default for an application, or \
     https://outlook.office.com/SMTP.Send offline_access for a sign-in, with the names of the cloud";
const CONSENT: &str = "Give the application the permission of Office 365 Exchange Online (SMTP.SendAsApp for itself, SMTP.Send for a sign-in) \
     and grant admin consent under API permissions";
const STATUS: &str =
    "Nothing to do here if it passes; https://status.cloud.microsoft says how the service fares";

fn by_number(aadsts: u32) -> Option<Advice> {
    Some(match aadsts {
        7_000_215 => (
            "the client secret is wrong",
            &[
                "Write the secret's value, not its id: it was shown only when it was made",
                NEW_SECRET,
            ],
        ),
        7_000_222 => ("the client secret has expired", &[NEW_SECRET]),
        700_027 => (
            "the certificate, or what was signed with it, is not known to the application",
            &[
                "Upload the file that certificate names to the app registration, under Certificates & secrets",
                "If it is there already, compare thumbprints: openssl x509 -noout -fingerprint -sha256 -in FILE",
            ],
        ),
        700_024 => ("the signed assertion is not valid at the endpoint's time", &[CLOCK]),
        700_025 => (
            "the application is a public one, which has neither secret nor certificate",
            &["Take client_secret, certificate and private_key out of [mailbox.oauth]"],
        ),
        7_000_218 => (
            "the application has to prove itself, or be a public one",
            &[
                "Switch on Allow public client flows (App registrations, Authentication), or add client_secret",
            ],
        ),
        700_016 | 7_000_112 => (
            "the tenant has no such application, or it is switched off there",
            &[WHOSE, "See under Enterprise applications that it is there and enabled"],
        ),
        90_002 | 900_023 | 900_021 => (
            "there is no such tenant",
            &[
                "Correct tenant: the directory id from Entra's Overview, or a domain of the tenant",
                "Check cloud: a tenant of a national cloud is known only there",
            ],
        ),
        90_038 | 90_051 | 900_382 | 900_432 | 900_439 => (
            "the tenant belongs to another cloud",
            &["Correct cloud in [mailbox.oauth]: global, gcc-high, dod or china"],
        ),
        70_011 | 1_002_012 | 28_002 | 28_003 => ("the scope is wrong", &[SCOPE]),
        500_011 => (
            "the tenant does not know what the scope is for",
            &[SCOPE, "Check cloud, and that the tenant has Exchange Online"],
        ),
        700_082 | 70_008 | 70_043 | 700_084 => ("the sign-in has expired", &[SIGN_IN]),
        50_173 | 70_000 | 54_005 | 65_002 => ("the sign-in was revoked or used up", &[SIGN_IN]),
        50_072 | 50_074 | 50_076 | 50_079 => (
            "the account has to show a second factor",
            &[
                "Sign in again and show it: smtp-uplift login MAILBOX --browser",
                "For an account that nobody sits at, flow = \"client-credentials\" needs no second factor",
            ],
        ),
        50_126 | 50_034 => ("the account or its password is wrong", &[SIGN_IN]),
        50_053 => (
            "the account is locked, or signs in from a blocked address",
            &["Wait until it is unlocked, or have an administrator unlock it", SIGN_IN],
        ),
        50_055 => {
            ("the account's password has expired", &["Set a new password for the account", SIGN_IN])
        }
        50_057 => ("the account is switched off", &["Have an administrator enable it", SIGN_IN]),
        50_105 | 501_051 => (
            "the account may not use the application",
            &["Assign the account to it under Enterprise applications, Users and groups"],
        ),
        50_011 | 500_113 => (
            "the application does not let people come back to this machine",
            &[
                "Add http://localhost under App registrations, Authentication, Mobile and desktop applications",
            ],
        ),
        50_097 | 50_199 | 53_000..=53_004 | 53_011 | 530_032..=530_036 => {
            ("a policy of the tenant does not let the account in", &[POLICY])
        }
        65_001 | 65_004 | 90_094 | 90_095 => {
            ("nobody has consented to the application", &[CONSENT])
        }
        90_033 | 90_006 | 50_196 => ("the service is busy", &[STATUS]),
        _ => return None,
    })
}

fn by_code(code: Code) -> Advice {
    match code {
        Code::InvalidClient => (
            "the application did not prove itself",
            &["Check client_id, and client_secret or certificate, in [mailbox.oauth]"],
        ),
        Code::UnauthorizedClient => ("the application may not ask for this", &[WHOSE, CONSENT]),
        Code::InvalidRequest => (
            "the endpoint makes no sense of the request",
            &["Check tenant, client_id, scope and token_url in [mailbox.oauth]"],
        ),
        Code::InvalidScope => ("the scope is wrong", &[SCOPE]),
        Code::InvalidGrant => ("the sign-in is not good any more", &[SIGN_IN]),
        Code::Unavailable => ("the service is busy", &[STATUS]),
        Code::Pending | Code::SlowDown => ("nobody has entered the code yet", &[]),
        Code::ExpiredToken => ("nobody has entered the code in time", &[SIGN_IN]),
        Code::AccessDenied => ("somebody, or a policy, has said no", &[SIGN_IN, POLICY]),
        Code::InteractionRequired => (
            "somebody has to answer a question that the identity platform asks",
            &["Sign in again: smtp-uplift login MAILBOX --browser"],
        ),
        Code::Unknown => (
            "the endpoint says no",
            &[
                "Look the error up at https://login.microsoftonline.com/error, or ask whoever runs the endpoint",
            ],
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_field_decides_and_the_number_chooses_the_words() {
        for (error, description, passes, meaning, remedy) in [
            (
                "invalid_client",
                "AADSTS7000215: Invalid client secret",
                false,
                "is wrong",
                "not its id",
            ),
            (
                "invalid_client",
                "AADSTS7000222: expired",
                false,
                "secret has expired",
                "new client secret",
            ),
            ("invalid_client", "AADSTS700027: assertion", false, "certificate", "Upload the file"),
            ("invalid_client", "AADSTS700024: not within its valid time", false, "time", "clock"),
            (
                "invalid_client",
                "AADSTS7000218: must contain",
                false,
                "public one",
                "public client flows",
            ),
            (
                "invalid_client",
                "no number",
                false,
                "did not prove itself",
                "client_secret or certificate",
            ),
            (
                "unauthorized_client",
                "AADSTS700016: not found",
                false,
                "no such application",
                "client_id",
            ),
            ("invalid_request", "AADSTS90002: Tenant", false, "no such tenant", "directory id"),
            ("invalid_request", "AADSTS900432: cross cloud", false, "another cloud", "gcc-high"),
            ("invalid_scope", "AADSTS70011: scope", false, "scope is wrong", "/.default"),
            (
                "invalid_grant",
                "AADSTS700082: expired",
                false,
                "sign-in has expired",
                "login MAILBOX",
            ),
            (
                "invalid_grant",
                "AADSTS70008: expired",
                false,
                "sign-in has expired",
                "login MAILBOX",
            ),
            ("invalid_grant", "AADSTS50076: MFA", false, "second factor", "--browser"),
            ("invalid_grant", "AADSTS50126: password", false, "password is wrong", "login MAILBOX"),
            ("invalid_grant", "AADSTS50053: locked", false, "locked", "unlock"),
            (
                "invalid_grant",
                "AADSTS50055: expired",
                false,
                "password has expired",
                "new password",
            ),
            ("invalid_grant", "AADSTS53003: blocked", false, "policy", "Conditional Access"),
            ("invalid_grant", "AADSTS65001: consent", false, "consented", "admin consent"),
            ("invalid_grant", "", false, "not good any more", "login MAILBOX"),
            ("temporarily_unavailable", "AADSTS90033: transient", true, "busy", "passes"),
            ("server_error", "", true, "busy", "passes"),
            // A number that usually passes does not make the error one that does.
            ("invalid_client", "AADSTS90033: transient", false, "busy", "passes"),
            ("authorization_pending", "AADSTS70016: pending", true, "entered", ""),
            ("slow_down", "", true, "entered", ""),
            ("expired_token", "", false, "in time", "login MAILBOX"),
            ("access_denied", "", false, "said no", "login MAILBOX"),
            ("interaction_required", "", false, "question", "--browser"),
            ("never_heard_of", "AADSTS1: new", false, "says no", "Look the error up"),
        ] {
            let code = Code::parse(error);
            let (said, steps) = advice(code, aadsts(description, &[]));
            assert_eq!(code.passes(), passes, "{error} {description}");
            assert!(said.contains(meaning), "{error} {description}: {said}");
            assert!(steps.join(" ").contains(remedy), "{error} {description}: {steps:?}");
        }
    }

    #[test]
    fn the_number_stands_in_the_text_or_in_a_list() {
        for (description, codes, wanted) in [
            ("AADSTS7000215: x", &[1][..], Some(7_000_215)),
            ("no number", &[70_011, 2], Some(70_011)),
            ("AADSTS: none", &[], None),
            ("AADSTS99999999999999999999: too long", &[5], Some(5)),
            ("", &[], None),
        ] {
            assert_eq!(aadsts(description, codes), wanted, "{description}");
        }
    }

    #[test]
    fn a_blocked_device_code_is_told_from_other_refusals() {
        assert!(blocks_device_codes(Code::InvalidGrant, Some(53_003)));
        assert!(blocks_device_codes(Code::InteractionRequired, Some(50_199)));
        assert!(!blocks_device_codes(Code::InvalidGrant, Some(50_126)));
        assert!(!blocks_device_codes(Code::ExpiredToken, None));
    }

    #[test]
    fn no_remedy_says_to_switch_off_what_has_to_be_on() {
        for number in 0..10_000_000 {
            if let Some((meaning, remedy)) = by_number(number) {
                assert!(!meaning.is_empty() && !remedy.is_empty(), "{number}");
                assert!(!remedy.join(" ").contains("SmtpClientAuthenticationDisabled"));
            }
        }
    }
}
