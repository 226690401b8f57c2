//! A token endpoint that answers with what a test has put there, in turn; the last answer repeats.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Response, Uri},
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use reqwest::Url;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use smtp_uplift::transport::{certificate::Identity, stream::BoxIo};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::TOKEN;

/// What comes back for one request.
#[derive(Clone)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Nothing comes before the endpoint is let go.
    held: bool,
    /// In chunks, so that nobody knows the length.
    chunked: bool,
}

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) form: HashMap<String, String>,
    pub(crate) headers: HeaderMap,
}

#[derive(Clone)]
struct Desk {
    answers: Arc<Mutex<Vec<Answer>>>,
    asked: watch::Sender<Vec<Asked>>,
    gate: Arc<Semaphore>,
}

pub(crate) struct Endpoint {
    address: SocketAddr,
    scheme: &'static str,
    desk: Desk,
    /// In PEM form.
    pub(crate) certificate: Vec<u8>,
    _serving: JoinSet<()>,
}

impl Answer {
    pub(crate) fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::new(status, value.to_string()).header("content-type", "application/json")
    }

    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), held: false, chunked: false }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn held(self) -> Self {
        Self { held: true, ..self }
    }

    pub(crate) fn chunked(self) -> Self {
        Self { chunked: true, ..self }
    }

    /// A token, numbered so that tests know it.
    pub(crate) fn token(number: u32, life: u64) -> Self {
        Self::json(
            200,
            &serde_json::json!({
                "token_type": "Bearer", "expires_in": life, "access_token": format!("{TOKEN}-{number}")
            }),
        )
    }

    /// As before, with a refresh token.
    pub(crate) fn tokens(number: u32, life: u64, refresh: &str) -> Self {
        Self::json(
            200,
            &serde_json::json!({
                "token_type": "Bearer", "expires_in": life, "access_token": format!("{TOKEN}-{number}"),
                "refresh_token": refresh, "scope": "SMTP.Send"
            }),
        )
    }

    /// A refusal.
    pub(crate) fn error(error: &str, description: &str) -> Self {
        Self::json(400, &serde_json::json!({"error": error, "error_description": description}))
    }
}

impl Endpoint {
    pub(crate) async fn start() -> Self {
        Self::serve(None).await
    }

    pub(crate) async fn with_tls() -> Self {
        Self::serve(Some(Identity::make(&["localhost"]).unwrap())).await
    }

    async fn serve(identity: Option<Identity>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let desk = Desk {
            answers: Arc::default(),
            asked: watch::Sender::default(),
            gate: Arc::new(Semaphore::new(0)),
        };
        let router = Router::new().fallback(answer).with_state(desk.clone());
        let certificate = identity.as_ref().map(|identity| identity.certificate.to_pem().unwrap());
        let acceptor = identity.as_ref().map(acceptor);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (router, acceptor) = (router.clone(), acceptor.clone());
                open.spawn(async move {
                    let io: BoxIo = match acceptor {
                        None => Box::new(stream),
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => return,
                        },
                    };
                    let service = TowerToHyperService::new(router);
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
                });
            }
        });
        Self {
            address,
            scheme: if certificate.is_some() { "https" } else { "http" },
            desk,
            certificate: certificate.unwrap_or_default(),
            _serving: serving,
        }
    }

    pub(crate) fn url(&self) -> String {
        let host = if self.scheme == "https" { "localhost" } else { "127.0.0.1" };
        let port = self.address.port();
        format!("{}://{host}:{port}/contoso.example/oauth2/v2.0/token", self.scheme)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// What is answered from now on.
    pub(crate) fn answers(&self, answers: impl IntoIterator<Item = Answer>) {
        *self.desk.answers.lock().unwrap() = answers.into_iter().collect();
    }

    /// Lets an answer go that is held.
    pub(crate) fn let_go(&self) {
        self.desk.gate.add_permits(1);
    }

    /// All that was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.desk.asked.borrow().clone()
    }

    /// Waits until so many requests have come.
    pub(crate) async fn asked_times(&self, times: usize) -> Vec<Asked> {
        let mut asked = self.desk.asked.subscribe();
        asked.wait_for(|asked| asked.len() >= times).await.unwrap().clone()
    }
}

fn acceptor(identity: &Identity) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = vec![identity.certificate.to_der().unwrap().into()];
    let key = PrivatePkcs8KeyDer::from(identity.key.private_key_to_pkcs8().unwrap());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::Pkcs8(key))
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn answer(
    State(desk): State<Desk>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let text = String::from_utf8(body.to_vec()).unwrap();
    let form = Url::parse(&format!("http://x/?{text}")).unwrap();
    let form = form.query_pairs().into_owned().collect();
    let path = uri.path().to_owned();
    desk.asked.send_modify(|asked| asked.push(Asked { path, form, headers }));
    let answer = {
        let mut answers = desk.answers.lock().unwrap();
        if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() }
    };
    if answer.held {
        desk.gate.acquire().await.unwrap().forget();
    }
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    let body = if answer.chunked {
        let pieces: Vec<_> = answer.body.chunks(64 * 1024).map(Bytes::copy_from_slice).collect();
        Body::from_stream(futures_util::stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)))
    } else {
        Body::from(answer.body)
    };
    response.body(body).unwrap()
}
