//! One token for all who want it, and when the next one is asked for.

use std::{fs, time::Duration};

use smtp_uplift::{
    config::{ClientProof, Secret},
    proto::sasl::{Credentials, Login},
    transport::certificate::Identity,
};
use tokio::{task::JoinSet, time::timeout};

use super::{Desk, SECRET, TOKEN, application, endpoint::Answer, pass};

fn token(number: u32) -> Result<String, String> {
    Ok(format!("{TOKEN}-{number}"))
}

#[tokio::test]
async fn fifty_who_want_a_token_ask_once() {
    let desk = Desk::new().await;
    desk.endpoint.answers([Answer::token(1, 3600).held(), Answer::token(2, 3600)]);
    let mut waiting = JoinSet::new();
    for _ in 0..50 {
        let target = desk.target.clone();
        waiting.spawn(async move { target.login().await.unwrap() });
    }
    desk.endpoint.asked_times(1).await;
    desk.endpoint.let_go();
    let mut credentials = Vec::new();
    while let Some(login) = waiting.join_next().await {
        let (Login::Token(Credentials { user, secret }), credential) = login.unwrap() else {
            panic!()
        };
        assert_eq!((user.as_str(), Ok(secret)), (super::MAILBOX, token(1)));
        credentials.push(credential);
    }
    credentials.dedup();
    assert_eq!((credentials.len(), credentials[0]), (1, desk.target.credential().unwrap()));
    let asked = desk.endpoint.asked();
    assert_eq!(asked.len(), 1);
    for (key, value) in [
        ("grant_type", "client_credentials"),
        ("client_id", "the-client"),
        ("client_secret", SECRET),
        ("scope", "https://outlook.office365.com/.default"),
    ] {
        assert_eq!(asked[0].form[key], value);
    }
    assert_eq!(asked[0].form.len(), 4);
    let left =
        desk.target.token_expires().unwrap().duration_since(jiff::Timestamp::now()).as_secs();
    assert!((3590..=3600).contains(&left), "{left}");
}

#[tokio::test]
async fn the_next_token_is_asked_for_ahead_and_nobody_waits_for_it() {
    let desk = Desk::new().await;
    desk.endpoint.answers([
        Answer::token(1, 3600),
        Answer::token(2, 3600).held(),
        Answer::token(3, 3600),
    ]);
    assert_eq!(desk.token().await, token(1));
    let credential = desk.target.credential().unwrap();
    pass(3299).await;
    assert_eq!(desk.token().await, token(1));
    assert_eq!(desk.endpoint.asked().len(), 1);
    pass(2).await;
    // The endpoint does not answer yet.
    assert_eq!(desk.token().await, token(1));
    desk.endpoint.asked_times(2).await;
    assert_eq!(desk.token().await, token(1));
    desk.endpoint.let_go();
    while desk.token().await != token(2) {
        tokio::task::yield_now().await;
    }
    assert_eq!(desk.endpoint.asked().len(), 2);
    assert_eq!(desk.target.credential().unwrap(), credential, "connections stay good");
}

#[tokio::test]
async fn a_token_that_is_still_good_is_used_while_the_endpoint_fails() {
    let desk = Desk::new().await;
    desk.endpoint.answers([Answer::token(1, 3600), Answer::new(503, "")]);
    assert_eq!(desk.token().await, token(1));
    pass(3350).await;
    assert_eq!(desk.token().await, token(1));
    desk.endpoint.asked_times(2).await;
    pass(200).await;
    assert_eq!(desk.token().await, token(1));
    pass(60).await;
    let error = desk.token().await.unwrap_err();
    assert!(error.starts_with("no token: "), "{error}");
}

#[tokio::test]
async fn the_endpoint_is_left_alone_after_a_failure() {
    let desk = Desk::new().await;
    desk.endpoint.answers([
        Answer::new(429, "").header("retry-after", "120"),
        Answer::error("invalid_client", "AADSTS7000222: expired"),
        Answer::token(1, 3600),
    ]);
    let throttled = desk.token().await.unwrap_err();
    pass(119).await;
    assert_eq!(desk.token().await.unwrap_err(), throttled);
    assert_eq!(desk.endpoint.asked().len(), 1);
    pass(50).await;
    let expired = desk.token().await.unwrap_err();
    assert!(expired.contains("AADSTS7000222"), "{expired}");
    pass(500).await;
    assert_eq!(desk.token().await.unwrap_err(), expired);
    assert_eq!(desk.endpoint.asked().len(), 2);
    // An operator's word.
    desk.target.try_again();
    assert_eq!(desk.token().await, token(1));
}

/// Whatever the status is, if only the error passes.
#[tokio::test]
async fn an_endpoint_that_is_busy_for_so_long_is_left_alone_for_so_long() {
    let busy = || Answer::error("temporarily_unavailable", "").header("retry-after", "600");
    for answer in [busy(), Answer::new(408, "").header("retry-after", "600")] {
        let desk = Desk::new().await;
        desk.endpoint.answers([answer, Answer::token(1, 3600)]);
        desk.token().await.unwrap_err();
        pass(599).await;
        desk.token().await.unwrap_err();
        assert_eq!(desk.endpoint.asked().len(), 1);
        pass(300).await;
        assert_eq!(desk.token().await, token(1));
    }
}

#[tokio::test]
async fn a_trouble_of_a_moment_costs_a_moment() {
    let desk = Desk::new().await;
    desk.endpoint.answers([Answer::new(503, ""), Answer::token(1, 3600)]);
    desk.token().await.unwrap_err();
    pass(7).await;
    assert_eq!(desk.token().await, token(1));
}

#[tokio::test]
async fn a_new_secret_is_tried_at_once() {
    let desk = Desk::new().await;
    desk.endpoint.answers([
        Answer::error("invalid_client", "AADSTS7000215: wrong"),
        Answer::token(1, 3600),
        Answer::token(2, 3600),
    ]);
    desk.token().await.unwrap_err();
    desk.token().await.unwrap_err();
    assert_eq!(desk.endpoint.asked().len(), 1);
    let before = desk.target.credential().unwrap();
    let file = desk.folder.path().join("client-secret");
    fs::write(&file, "the right one").unwrap();
    assert_ne!(desk.target.credential().unwrap(), before);
    assert_eq!(desk.token().await, token(1));
    assert_eq!(desk.endpoint.asked()[1].form["client_secret"], "the right one");
    // While there is a good token, the next secret shows in the background what it is worth.
    fs::write(&file, "another").unwrap();
    assert_eq!(desk.token().await, token(1));
    assert_eq!(desk.endpoint.asked_times(3).await[2].form["client_secret"], "another");
    fs::remove_file(&file).unwrap();
    let said = desk.token().await.unwrap_err();
    assert!(said.contains("client-secret cannot be read: No such file"), "{said}");
}

#[tokio::test]
async fn whoever_gives_up_takes_the_request_from_nobody() {
    let desk = Desk::new().await;
    desk.endpoint.answers([Answer::token(1, 3600).held(), Answer::token(2, 3600)]);
    assert!(timeout(Duration::from_millis(1), desk.token()).await.is_err());
    desk.endpoint.asked_times(1).await;
    desk.endpoint.let_go();
    assert_eq!(desk.token().await, token(1));
    assert_eq!(desk.endpoint.asked().len(), 1);
}

#[tokio::test]
async fn a_refused_token_is_replaced_once() {
    let desk = Desk::new().await;
    desk.endpoint.answers([1, 2, 3].map(|number| Answer::token(number, 3600)));
    let (first, credential) = desk.target.login().await.unwrap();
    assert!(desk.target.refused(&first));
    assert!(desk.target.refused(&first), "of another connection, which may take the next one too");
    let (second, again) = desk.target.login().await.unwrap();
    assert_eq!((desk.endpoint.asked().len(), again), (2, credential));
    assert!(!desk.target.refused(&second), "it is not the token that is wrong");
    assert_eq!(desk.token().await, token(2));
    assert!(!desk.target.refused(&Login::None));
}

#[tokio::test]
async fn a_certificate_signs_and_an_expired_one_asks_nobody() {
    let certificate = |days: u32| {
        move |endpoint: &super::Endpoint, folder: &std::path::Path| {
            let identity = Identity::make_for(&["app"], days).unwrap();
            fs::write(folder.join("app.crt"), identity.certificate.to_pem().unwrap()).unwrap();
            fs::write(folder.join("app.key"), identity.key.private_key_to_pem_pkcs8().unwrap())
                .unwrap();
            let mut oauth = application(endpoint, folder);
            oauth.client = Some(ClientProof::Certificate {
                certificate: folder.join("app.crt"),
                private_key: Secret::file(folder.join("app.key")),
            });
            oauth
        }
    };
    let desk = Desk::with(certificate(100)).await;
    desk.endpoint.answers([Answer::token(1, 3600)]);
    assert_eq!(desk.token().await, token(1));
    let form = desk.endpoint.asked().remove(0).form;
    assert!(!form.contains_key("client_secret"));
    assert_eq!(
        form["client_assertion_type"],
        "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    );
    assert_eq!(form["client_assertion"].split('.').count(), 3);
    let left = desk.tokens().credential_expires().unwrap().duration_since(jiff::Timestamp::now());
    assert_eq!((left.as_hours() + 1) / 24, 100);

    let desk = Desk::with(certificate(0)).await;
    let said = desk.token().await.unwrap_err();
    assert!(
        said.contains("app.crt has expired on ") && said.contains("to the app registration"),
        "{said}"
    );
    assert!(desk.endpoint.asked().is_empty());
    assert!(desk.tokens().token().await.unwrap_err().is_local());
}
