//! The other end of [`super::server_tls`]: TLS as an old device speaks it. For the proof at start, the demo
//! and the tests; the certificate is not checked, as devices do not.

use std::pin::Pin;

use openssl::{
    error::ErrorStack,
    ssl::{self, Ssl, SslContext, SslMethod, SslVerifyMode, SslVersion},
};
use tokio_openssl::SslStream;

use super::{
    server_tls,
    stream::{BoxIo, TlsInfo},
};

/// A device that knows one version of TLS, and perhaps one cipher.
#[derive(Clone)]
pub struct DeviceTls {
    context: SslContext,
}

impl DeviceTls {
    /// `cipher` is a suite by OpenSSL's name, `None` for all that the library has.
    pub fn new(version: SslVersion, cipher: Option<&str>) -> Result<Self, ErrorStack> {
        server_tls::load_legacy_provider();
        let mut builder = SslContext::builder(SslMethod::tls_client())?;
        builder.set_verify(SslVerifyMode::NONE);
        builder.set_security_level(0);
        builder.set_min_proto_version(Some(version))?;
        builder.set_max_proto_version(Some(version))?;
        match cipher {
            Some(cipher) if cipher.starts_with("TLS_") => builder.set_ciphersuites(cipher)?,
            Some(cipher) => builder.set_cipher_list(&format!("{cipher}:@SECLEVEL=0"))?,
            None => builder.set_cipher_list("ALL:@SECLEVEL=0")?,
        }
        Ok(Self { context: builder.build() })
    }

    /// Shakes hands with a server.
    pub async fn connect(&self, io: BoxIo) -> Result<(BoxIo, TlsInfo), ssl::Error> {
        let mut stream = SslStream::new(Ssl::new(&self.context)?, io)?;
        Pin::new(&mut stream).connect().await?;
        let info = server_tls::info(stream.ssl());
        Ok((Box::new(stream), info))
    }
}
