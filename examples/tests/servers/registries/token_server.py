"""A token service for docker-registry, for tests: users get what they ask for, others pull only. Tokens are RS256 with x5c.

token_server.py FOLDER PORT TTL: writes FOLDER/token.crt, answers at /token, and writes what it was asked to FOLDER/asked."""
import base64, datetime, http.server, json, secrets, sys, time, urllib.parse
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

folder, port, ttl = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "token")])
now = datetime.datetime.now(datetime.timezone.utc)
day = datetime.timedelta(days=1)
crt = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
       .not_valid_before(now - day).not_valid_after(now + day).sign(key, hashes.SHA256()))
der = crt.public_bytes(serialization.Encoding.DER)
asked = open(f"{folder}/asked", "a", buffering=1)
# docker-registry grants a minute beyond the end.
LEEWAY = 60

def b64(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=")

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def grant(self, query, user):
        access = []
        for scope in " ".join(query.get("scope", [])).split():
            kind, rest = scope.split(":", 1)
            of, actions = rest.rsplit(":", 1)
            actions = actions.split(",") if user else [a for a in actions.split(",") if a == "pull"]
            access.append({"type": kind, "name": of, "actions": actions})
        at = int(time.time())
        head = b64(json.dumps({"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}).encode())
        claims = {"iss": "dth-test", "sub": user, "aud": query.get("service", [""])[0], "exp": at + ttl - LEEWAY, "nbf": at - 120,
                  "iat": at, "jti": secrets.token_hex(8), "access": access}
        body = head + b"." + b64(json.dumps(claims).encode())
        token = (body + b"." + b64(key.sign(body, padding.PKCS1v15(), hashes.SHA256()))).decode()
        self.answer(200, json.dumps({"access_token": token, "expires_in": ttl}).encode())

    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        login, user = self.headers.get("Authorization", ""), ""
        asked.write(f"GET {' '.join(query.get('scope', []))} {'login' if login else 'anonymous'}\n")
        if login.startswith("Basic "):
            user, password = base64.b64decode(login[6:]).decode().split(":", 1)
            if (user, password) != ("user", "pass:word"):
                return self.answer(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}')
        self.grant(query, user)

    def do_POST(self):
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        query = urllib.parse.parse_qs(form)
        asked.write(f"POST {' '.join(query.get('scope', []))} {query.get('grant_type', [''])[0]}\n")
        if query.get("refresh_token") != ["refresh+me/="]:
            return self.answer(401, b"{}")
        self.grant(query, "user")

server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
open(f"{folder}/token.crt", "wb").write(crt.public_bytes(serialization.Encoding.PEM))
server.serve_forever()
