//! The envelope of a transaction (RFC 5321 section 2.3.1).

use super::{
    param::MailParams,
    path::{ForwardPath, ReversePath},
};

/// Where a message comes from and where it goes, apart from what its header section says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The argument of MAIL.
    pub reverse_path: ReversePath,
    /// The parameters of MAIL.
    pub params: MailParams,
    /// The recipients that were accepted, in order.
    pub recipients: Vec<ForwardPath>,
}
