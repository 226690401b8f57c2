//! Sockets and TLS, on both sides: [`listener`], [`handshakes`] and [`server_tls`] face the devices, [`dial`] and
//! [`client_tls`] the smarthost. Everything above reads and writes a [`stream::BoxIo`].

pub mod certificate;
pub mod client_tls;
pub mod device_tls;
pub mod dial;
pub mod handshakes;
pub mod listener;
pub mod peek;
pub mod proxy_header;
pub mod server_tls;
pub mod stream;
