//! What the mailbox logs in with, looked at before the smarthost sees it, and what it may be when that refuses a token
//! that looks good.

use std::sync::Arc;

use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::{Outcome, Stop, Walk};
use crate::{
    config::{ClientProof, MailboxAuth, OAuthFlow},
    proto::sasl::Login,
    smarthost::{
        oauth::Tokens,
        token::{self, Application},
    },
    transport::certificate::{RENEW, days_left},
};

impl Walk<'_> {
    /// When it ends, a token if the mailbox gets its own, and what stands in the token.
    pub(super) async fn access(&mut self) -> Result<(), Stop> {
        let token = match self.target.tokens().cloned() {
            Some(tokens) => {
                self.credential(&tokens);
                Some(self.token_request(&tokens).await?)
            }
            None if matches!(self.target.auth(), MailboxAuth::XOAuth2 { .. }) => {
                match self.secret().await? {
                    Login::Token(credentials) => Some(credentials.secret),
                    _ => None,
                }
            }
            None => None,
        };
        let Some(token) = token else { return Ok(()) };
        let finding = token::examine(&token);
        let stop = finding.outcome == Outcome::Failed;
        (self.tell)(finding);
        if stop {
            return Err(Stop);
        }
        self.application = token::application(&token);
        self.owner = token::who(&token);
        Ok(())
    }

    /// When the secret, certificate or sign-in ends that tokens are asked for with.
    fn credential(&mut self, tokens: &Tokens) {
        // One that cannot be read shows at the request.
        if tokens.credential().is_err() {
            return;
        }
        let (flow, client) = (tokens.oauth().flow, &tokens.oauth().client);
        let (what, next) = match (flow, client) {
            (OAuthFlow::ClientCredentials, Some(ClientProof::Certificate { .. })) => (
                "the certificate",
                "Make a new one, upload it to the app registration beside the old one, then write it into what certificate and \
                 private_key name",
            ),
            (OAuthFlow::ClientCredentials, _) => (
                "the client secret",
                "Make a new one (Entra admin center, App registrations, Certificates & secrets), write it into what client_secret \
                 names, and its end into client_secret_expires",
            ),
            _ => ("the sign-in", "Sign in again: smtp-uplift login MAILBOX"),
        };
        let Some(end) = tokens.credential_expires() else {
            if matches!(client, Some(ClientProof::Secret(_))) {
                let step = "Write client_secret_expires = YEAR-MONTH-DAY into [mailbox.oauth], as the app registration shows it: \
                            doctor and a metric warn in time then";
                self.warning("credential", format!("nobody can see when {what} ends"), &[step]);
            }
            return;
        };
        let left = days_left(end.as_second(), Timestamp::now().as_second());
        let date = end.strftime("%Y-%m-%d");
        if end <= Timestamp::now() {
            self.failed("credential", format!("{what} has ended on {date}"), &[next]);
        } else if left < RENEW {
            self.warning("credential", format!("{what} ends on {date}, in {left} days"), &[next]);
        } else {
            self.ok("credential", format!("{what} is good until {date}, {left} more days"));
        }
    }

    async fn token_request(&mut self, tokens: &Arc<Tokens>) -> Result<String, Stop> {
        const STEP: &str = "token request";
        let url = tokens.oauth().token_url.clone();
        let begun = Instant::now();
        let token = match tokens.request().await {
            Ok(token) => token.secret.expose_secret().to_owned(),
            Err(error) => {
                let remedy: Vec<&str> = error.remedy.iter().map(String::as_str).collect();
                return Err(self.failed(STEP, error.message, &remedy));
            }
        };
        let found = format!("{url} gave a token within {} ms", begun.elapsed().as_millis());
        match token::behind(&token, Timestamp::now()) {
            Some(seconds) => {
                let (minutes, way) =
                    (seconds.abs() / 60, ["ahead of", "behind"][usize::from(seconds > 0)]);
                let step = format!(
                    "Set this machine's clock, and have it kept by NTP (timedatectl shows it): it is {minutes} minutes {way} \
                     that of the identity platform, and ends of tokens and certificates are judged by it"
                );
                self.warning(STEP, found, &[step.as_str()]);
            }
            None => self.ok(STEP, found),
        }
        Ok(token)
    }

    /// What to do when the smarthost refuses a token that looks good; `None` if nothing is known beyond its reply.
    pub(super) fn refused_token(&self) -> Option<(String, Vec<String>)> {
        let user = &self.target.username;
        let smtp = format!(
            "Set-CASMailbox {user} -SmtpClientAuthenticationDisabled $false: the switch is for tokens too"
        );
        if let Some(owner) = self.owner.as_ref().filter(|owner| !owner.eq_ignore_ascii_case(user)) {
            let found = format!("The token is {owner}'s, and the mailbox logs in as {user}");
            let steps = vec![
                format!("Sign in again as {user}: smtp-uplift login {}", self.target.mailbox),
                format!(
                    "A shared mailbox: Add-MailboxPermission {user} -User {owner} -AccessRights FullAccess"
                ),
                smtp,
            ];
            return Some((found, steps));
        }
        let Application { id, object, sends } = self.application.as_ref()?;
        let object = object.as_deref().unwrap_or("<object id>");
        let mut steps = vec![
            format!(
                "New-ServicePrincipal -AppId {id} -ObjectId {object} (after Connect-ExchangeOnline). The object id is that of \
                 Enterprise applications in the Entra admin center, not that of App registrations: the most frequent mistake. \
                 Get-ServicePrincipal shows what there is; Remove-ServicePrincipal first takes away one with another id"
            ),
            format!("Add-MailboxPermission {user} -User {object} -AccessRights FullAccess"),
            smtp,
            "Wait: it takes Exchange Online up to an hour to learn of these".to_owned(),
        ];
        if *sends {
            let found = "The token is good, so it is Exchange Online that does not know the application, or not for this mailbox: \
                         its service principal is missing or was made with the wrong object id, or it has no right to the mailbox";
            return Some((found.to_owned(), steps));
        }
        steps.insert(0, token::GRANT.to_owned());
        Some(("The token does not allow to send mail".to_owned(), steps))
    }
}
