"""A device that is Python's own smtplib, over the ssl module.

Arguments: plain|starttls|implicit PORT SENDER RECIPIENT FILE [VERSION CIPHERS [USER PASSWORD]]
"""

import smtplib
import ssl
import sys

mode, port, sender, recipient, file, *options = sys.argv[1:]

context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
if options:
    context.minimum_version = context.maximum_version = ssl.TLSVersion[options[0]]
    context.set_ciphers(options[1])

if mode == "implicit":
    server = smtplib.SMTP_SSL("127.0.0.1", port, "copier", context=context, timeout=30)
else:
    server = smtplib.SMTP("127.0.0.1", port, "copier", timeout=30)
if mode == "starttls":
    server.starttls(context=context)
if options[2:]:
    server.login(*options[2:])
with open(file, "rb") as message:
    server.sendmail(sender, [recipient], message.read())
server.quit()
