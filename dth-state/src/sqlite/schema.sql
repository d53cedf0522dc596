-- One file is one task: queue, records, packs, runs and cursors, so that they commit and roll back together.
-- Times are milliseconds since 1970, UTC. Keys compare by their UTF-8 bytes.
CREATE TABLE message (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  body TEXT NOT NULL,
  visible_at INTEGER NOT NULL,
  leased INTEGER NOT NULL DEFAULT 0,
  receives INTEGER NOT NULL DEFAULT 0
) STRICT;
-- Covers counting: the bodies are long.
CREATE INDEX message_visible ON message (visible_at, id, leased);

CREATE TABLE dead_letter (
  id INTEGER PRIMARY KEY,
  body TEXT NOT NULL,
  reason TEXT NOT NULL,
  receives INTEGER NOT NULL,
  given_up_at INTEGER NOT NULL
) STRICT;

CREATE TABLE record (
  key TEXT PRIMARY KEY,
  version INTEGER NOT NULL,
  status TEXT NOT NULL,
  run TEXT NOT NULL,
  source_etag TEXT,
  source_size INTEGER,
  destination_etag TEXT,
  attempts INTEGER NOT NULL,
  updated INTEGER NOT NULL,
  error TEXT,
  more TEXT -- what few records have, as JSON
) STRICT, WITHOUT ROWID;
CREATE INDEX record_status ON record (status, key) WHERE status <> 'done';
CREATE INDEX record_uploads ON record (key) WHERE instr(more, '"uploads_since":') > 0;

CREATE TABLE part (
  upload TEXT NOT NULL,
  number INTEGER NOT NULL,
  part TEXT NOT NULL,
  PRIMARY KEY (upload, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE pack (
  id TEXT PRIMARY KEY,
  run TEXT, -- with which it is forgotten; none for an event's
  claimed INTEGER NOT NULL DEFAULT 0, -- last, or made
  incarnation INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  ended BLOB NOT NULL -- a bit for each job that has been counted
) STRICT, WITHOUT ROWID;
CREATE INDEX pack_run ON pack (run);
CREATE INDEX pack_of_event ON pack (claimed) WHERE run IS NULL;

CREATE TABLE run (
  id TEXT PRIMARY KEY,
  state TEXT NOT NULL,
  started INTEGER NOT NULL,
  ended INTEGER,
  totals TEXT NOT NULL -- the finder's side of the ledger, as JSON
) STRICT, WITHOUT ROWID;

CREATE TABLE outcome (
  run TEXT NOT NULL,
  outcome TEXT NOT NULL,
  objects INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  PRIMARY KEY (run, outcome)
) STRICT, WITHOUT ROWID;

CREATE TABLE shard (
  run TEXT NOT NULL,
  id INTEGER NOT NULL,
  after_key TEXT,
  until_key TEXT,
  position TEXT,
  done INTEGER NOT NULL,
  version INTEGER NOT NULL,
  PRIMARY KEY (run, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (
  run TEXT NOT NULL,
  pack TEXT NOT NULL,
  body TEXT NOT NULL,
  held INTEGER NOT NULL,
  PRIMARY KEY (run, pack)
) STRICT, WITHOUT ROWID;

-- What a backend remembers between runs.
CREATE TABLE note (
  name TEXT PRIMARY KEY,
  text TEXT NOT NULL,
  version INTEGER NOT NULL,
  written INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX note_written ON note (written);
