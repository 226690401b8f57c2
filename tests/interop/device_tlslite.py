"""A device with an old TLS of its own: smtplib over tlslite-ng (PyPI), which still speaks SSLv3, RC4 and 3DES.

Arguments: starttls|implicit PORT SENDER RECIPIENT FILE HELLO VERSION CIPHER MAC KEY-EXCHANGE

HELLO is `usual`; `bare`, which has no extension and no renegotiation signal (RFC 5746 section 3.3), as before
2003; or `sslv2`, a ClientHello in SSLv2's format that offers a newer version (RFC 5246 appendix E.2).
"""

import smtplib
import sys

import tlslite.tlsconnection
from tlslite.api import HandshakeSettings, TLSConnection
from tlslite.constants import CipherSuite
from tlslite.integration.smtp_tls import SMTP_TLS
from tlslite.messages import ClientHello

mode, port, sender, recipient, file, hello, version, cipher, mac, key_exchange = sys.argv[1:]

settings = HandshakeSettings()
number = {"SSLv3": (3, 0), "TLSv1": (3, 1), "TLSv1.1": (3, 2), "TLSv1.2": (3, 3)}[version]
settings.minVersion = settings.maxVersion = number
settings.versions = [number]
settings.cipherNames = [cipher]
settings.macNames = [mac]
settings.keyExchangeNames = [key_exchange]


class OldHello(ClientHello):
    sent = False

    def __init__(self):
        super().__init__(ssl2=hello == "sslv2")

    def create(self, *args, **kwargs):
        super().create(*args, **kwargs)
        self.extensions = None
        self.cipher_suites.remove(CipherSuite.TLS_EMPTY_RENEGOTIATION_INFO_SCSV)
        return self


class Connection(TLSConnection):
    def _sendMsg(self, message, *args, **kwargs):
        in_sslv2 = getattr(message, "ssl2", False)
        OldHello.sent = OldHello.sent or isinstance(message, OldHello)
        if in_sslv2:
            # The record layer picks the format of its header by this; everything behind the hello has the new one.
            version, self.version = self.version, (2, 0)
        yield from super()._sendMsg(message, *args, **kwargs)
        if in_sslv2:
            self.version = version


class ImplicitTls(smtplib.SMTP):
    def _get_socket(self, *args):
        connection = Connection(super()._get_socket(*args))
        connection.handshakeClientCert(settings=settings)
        return connection


if hello != "usual":
    tlslite.tlsconnection.ClientHello = OldHello
tlslite.integration.smtp_tls.TLSConnection = Connection

if mode == "implicit":
    server = ImplicitTls("127.0.0.1", port, "copier", timeout=30)
else:
    server = SMTP_TLS("127.0.0.1", port, "copier", timeout=30)
    server.starttls(settings=settings)
    server.ehlo()
with open(file, "rb") as message:
    server.sendmail(sender, [recipient], message.read())
server.quit()
assert hello == "usual" or OldHello.sent, "this tlslite-ng makes its ClientHello otherwise"
