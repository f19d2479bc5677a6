BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE audit_records (
	"key" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	time BIGINT NOT NULL, 
	principal VARCHAR NOT NULL, 
	peer VARCHAR NOT NULL, 
	method VARCHAR NOT NULL, 
	resource VARCHAR NOT NULL, 
	summary TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	code VARCHAR NOT NULL, 
	error_reason VARCHAR NOT NULL, 
	request_id VARCHAR NOT NULL, 
	root VARCHAR NOT NULL
);
INSERT INTO "audit_records" VALUES(1,1795461874248745,'anonymous','ipv4:127.0.0.1:55418','/midcourse.agent.v1.AgentService/Session','jobs/job','session of process instance-1 on gpu-01','','OK','','f0c2634c1f4a8f2f','jobs/job');
INSERT INTO "audit_records" VALUES(2,1795461874707302,'anonymous','ipv4:127.0.0.1:55418','/midcourse.control.v1.ControlPlaneService/UpdateParameters','jobs/job/updates/1','learning_rate → 0.0005','','OK','','6a459816594b7465','jobs/job');
INSERT INTO "audit_records" VALUES(3,1795461874761642,'anonymous','ipv4:127.0.0.1:55418','/midcourse.control.v1.ControlPlaneService/UpdateParameters','jobs/job/updates/2','learning_rate → 0.0002','','OK','','4e13c4d8bff6784b','jobs/job');
INSERT INTO "audit_records" VALUES(4,1795461874796787,'anonymous','ipv4:127.0.0.1:55418','/midcourse.control.v1.ControlPlaneService/CancelUpdate','jobs/job/updates/2','cancel','no more','OK','','d63c98483b4cd46c','jobs/job');
INSERT INTO "audit_records" VALUES(5,1795461874829814,'anonymous','ipv4:127.0.0.1:55418','/midcourse.control.v1.ControlPlaneService/UpdateParameters','jobs/job/updates/3','learning_rate → 0.0005','','OK','','2777c3d99145f8b9','jobs/job');
INSERT INTO "audit_records" VALUES(6,1795461875476030,'anonymous','ipv4:127.0.0.1:55418','/midcourse.agent.v1.AgentService/Session','jobs/job','session of process instance-1 on gpu-01','','OK','','fe225f8356736bd3','jobs/job');
CREATE TABLE batch_refusals (
	batch_key BIGINT NOT NULL, 
	job_id VARCHAR NOT NULL, 
	reason VARCHAR NOT NULL, 
	message TEXT NOT NULL, 
	PRIMARY KEY (batch_key, job_id), 
	FOREIGN KEY(batch_key) REFERENCES batches ("key") ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE batches (
	"key" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	spec TEXT NOT NULL, 
	selector TEXT NOT NULL, 
	best_effort BOOLEAN NOT NULL, 
	author VARCHAR NOT NULL, 
	request_id VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	create_time BIGINT NOT NULL, 
	total BIGINT NOT NULL, 
	refused BIGINT NOT NULL, 
	ended TEXT, 
	UNIQUE (author, request_id)
);
CREATE TABLE events (
	position INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	kind VARCHAR NOT NULL, 
	job_id VARCHAR NOT NULL, 
	job_uid VARCHAR NOT NULL, 
	revision BIGINT, 
	time BIGINT NOT NULL, 
	origin VARCHAR NOT NULL
);
INSERT INTO "events" VALUES(1,'created','job','f8d4bc36c2d9412b999b77933735f36c',NULL,1795461874248633,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(2,'modified','job','f8d4bc36c2d9412b999b77933735f36c',NULL,1795461874248633,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(3,'modified','job','f8d4bc36c2d9412b999b77933735f36c',1,1795461874707183,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(4,'modified','job','f8d4bc36c2d9412b999b77933735f36c',1,1795461874744792,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(5,'modified','job','f8d4bc36c2d9412b999b77933735f36c',2,1795461874761480,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(6,'modified','job','f8d4bc36c2d9412b999b77933735f36c',2,1795461874796713,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(7,'modified','job','f8d4bc36c2d9412b999b77933735f36c',2,1795461874819958,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(8,'modified','job','f8d4bc36c2d9412b999b77933735f36c',3,1795461874829720,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(9,'modified','job','f8d4bc36c2d9412b999b77933735f36c',3,1795461874836349,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(10,'modified','job','f8d4bc36c2d9412b999b77933735f36c',NULL,1795461874841094,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(11,'modified','job','f8d4bc36c2d9412b999b77933735f36c',4,1795461874853567,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(12,'modified','job','f8d4bc36c2d9412b999b77933735f36c',4,1795461874859850,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(13,'modified','job','f8d4bc36c2d9412b999b77933735f36c',NULL,1795461875296547,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(14,'modified','job','f8d4bc36c2d9412b999b77933735f36c',NULL,1795461875475946,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(15,'modified','job','f8d4bc36c2d9412b999b77933735f36c',NULL,1795461875489658,'9b4e00884b1d4d27');
INSERT INTO "events" VALUES(16,'modified','job','f8d4bc36c2d9412b999b77933735f36c',NULL,1795461876005570,'9b4e00884b1d4d27');
CREATE TABLE jobs (
	"key" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR NOT NULL, 
	uid VARCHAR NOT NULL, 
	create_time BIGINT NOT NULL, 
	update_time BIGINT NOT NULL, 
	version BIGINT NOT NULL, 
	labels TEXT NOT NULL, 
	method VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	state_message TEXT NOT NULL, 
	parameters TEXT NOT NULL, 
	actions TEXT NOT NULL, 
	revision BIGINT NOT NULL, 
	settled_revision BIGINT NOT NULL, 
	replay_floor BIGINT NOT NULL, 
	desired TEXT NOT NULL, 
	effective TEXT NOT NULL, 
	session TEXT, 
	exit TEXT, 
	label_edits TEXT NOT NULL, 
	replica VARCHAR NOT NULL, 
	UNIQUE (id)
);
INSERT INTO "jobs" VALUES(1,'job','f8d4bc36c2d9412b999b77933735f36c',1795461874248633,1795461876005570,15,'{"team":"nlp"}','sft','finished','training reached its end at step 100','[{"name":"learning_rate","kind":"number","unit":"","bounds":{"minimum":null,"maximum":null,"minimum_exclusive":false,"maximum_exclusive":false,"allowed_texts":[]},"boundary":"step","operations":["set"],"groups":[],"current_value":0.0001,"unavailable_reason":"","description":"","guard_rails":null}]','[]',4,4,0,'[{"change":{"parameter":"learning_rate","value":0.0005,"group":"","mode":"set","hold_steps":null,"coupling":"none","op":"set"},"revision":1}]','[{"parameter":"learning_rate","group":"","value":0.0001,"revision":1,"step":2}]','{"epoch":2,"instance_id":"instance-1","agent_id":"agent-1","host":"gpu-01","trainer_pid":4242,"agent_version":"0.1.0","connect_time":"2026-11-23T19:24:35.475946Z","last_seen_time":"2026-11-23T19:24:36.005570Z","connected":false,"replica":"9b4e00884b1d4d27","last_revision":4}',NULL,'{}','');
CREATE TABLE replicas (
	id VARCHAR NOT NULL, 
	beats BIGINT NOT NULL, 
	PRIMARY KEY (id)
)
 WITHOUT ROWID

;
CREATE TABLE runs (
	job_key BIGINT NOT NULL, 
	number BIGINT NOT NULL, 
	instance_id VARCHAR NOT NULL, 
	start_step BIGINT NOT NULL, 
	superseded BOOLEAN NOT NULL, 
	PRIMARY KEY (job_key, number), 
	FOREIGN KEY(job_key) REFERENCES jobs ("key") ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO "runs" VALUES(1,1,'instance-1',0,0);
CREATE TABLE samples (
	series_key BIGINT NOT NULL, 
	step BIGINT NOT NULL, 
	time BIGINT NOT NULL, 
	value DOUBLE, 
	PRIMARY KEY (series_key, step)
)
 WITHOUT ROWID

;
INSERT INTO "samples" VALUES(1,1,0,0.5);
INSERT INTO "samples" VALUES(1,2,0,0.4);
INSERT INTO "samples" VALUES(1,3,0,NULL);
CREATE TABLE series (
	"key" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	job_key BIGINT, 
	run BIGINT NOT NULL, 
	name VARCHAR NOT NULL, 
	oldest_time BIGINT NOT NULL, 
	UNIQUE (job_key, run, name), 
	FOREIGN KEY(job_key) REFERENCES jobs ("key") ON DELETE SET NULL
);
INSERT INTO "series" VALUES(1,1,1,'loss',0);
CREATE TABLE telemetry (
	job_key BIGINT NOT NULL, 
	progress TEXT, 
	metrics TEXT NOT NULL, 
	dropped_samples BIGINT NOT NULL, 
	readings TEXT NOT NULL, 
	epoch BIGINT NOT NULL, 
	seen_time BIGINT, 
	PRIMARY KEY (job_key), 
	FOREIGN KEY(job_key) REFERENCES jobs ("key") ON DELETE CASCADE
);
INSERT INTO "telemetry" VALUES(1,'[3,100,0.5,null,null,0]','[["loss",3,NaN,0]]',0,'[]',2,1795461875894749);
CREATE TABLE tokens (
	"key" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	principal VARCHAR NOT NULL, 
	access TEXT NOT NULL, 
	description TEXT NOT NULL, 
	creator VARCHAR NOT NULL, 
	create_time BIGINT NOT NULL, 
	expire_time BIGINT, 
	revoke_time BIGINT, 
	last_use_time BIGINT, 
	UNIQUE (id), 
	UNIQUE (digest)
);
CREATE TABLE updates (
	job_key BIGINT NOT NULL, 
	revision BIGINT NOT NULL, 
	request_id VARCHAR, 
	state VARCHAR NOT NULL, 
	spec TEXT NOT NULL, 
	deadline BIGINT, 
	author VARCHAR NOT NULL, 
	batch VARCHAR NOT NULL, 
	create_time BIGINT NOT NULL, 
	deliver_time BIGINT, 
	settle_time BIGINT, 
	cancel_request TEXT, 
	outcome TEXT, 
	reapplied TEXT NOT NULL, 
	trace_parent VARCHAR NOT NULL, 
	PRIMARY KEY (job_key, revision), 
	UNIQUE (job_key, request_id), 
	FOREIGN KEY(job_key) REFERENCES jobs ("key") ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO "updates" VALUES(1,1,'r1','applied','{"changes":[{"parameter":"learning_rate","value":0.0005,"group":"","mode":"set","hold_steps":null,"coupling":"none","op":"set"}],"action":null,"at_step":null,"max_step":null,"deadline":null,"reason":"","force":false}',NULL,'anonymous','',1795461874707183,1795461874744792,1795461874744792,NULL,'{"step":2,"transitions":[{"parameter":"learning_rate","group":"","old":0.001,"new":0.0001}],"apply_time":null,"instance_id":"","checkpoint":"","metrics":{},"rolled_back_by":null,"op":"applied"}','[]','');
INSERT INTO "updates" VALUES(1,2,'r2','cancelled','{"changes":[{"parameter":"learning_rate","value":0.0002,"group":"","mode":"set","hold_steps":null,"coupling":"none","op":"set"}],"action":null,"at_step":1000000,"max_step":null,"deadline":null,"reason":"","force":false}',NULL,'anonymous','',1795461874761480,1795461874819958,1795461874819958,'{"principal":"anonymous","reason":"no more","op":"cancelled"}','{"principal":"anonymous","reason":"no more","op":"cancelled"}','[]','');
INSERT INTO "updates" VALUES(1,3,'r3','rejected','{"changes":[{"parameter":"learning_rate","value":0.0005,"group":"","mode":"set","hold_steps":null,"coupling":"none","op":"set"}],"action":null,"at_step":null,"max_step":null,"deadline":null,"reason":"","force":false}',NULL,'anonymous','',1795461874829720,1795461874836349,1795461874836349,NULL,'{"reason":"NO_SCALE","message":"the rate is 0 here","parameter":"","in_force":[],"step":2,"op":"rejected"}','[]','');
INSERT INTO "updates" VALUES(1,4,'guard-1','applied','{"changes":[],"action":{"kind":"pause","checkpoint":""},"at_step":null,"max_step":null,"deadline":null,"reason":"the loss is not finite","force":false}',NULL,'guard','',1795461874853567,1795461874859850,1795461874859850,NULL,'{"step":3,"transitions":[],"apply_time":null,"instance_id":"","checkpoint":"","metrics":{},"rolled_back_by":null,"op":"applied"}','[]','');
CREATE INDEX jobs_by_state ON jobs (state, replica);
CREATE INDEX updates_by_state ON updates (job_key, state, revision);
CREATE INDEX updates_by_time ON updates (create_time, job_key, revision);
CREATE INDEX updates_by_author ON updates (author, create_time, job_key, revision);
CREATE INDEX updates_by_batch ON updates (batch, job_key, state) WHERE batch != '';
CREATE INDEX updates_open_by_deadline ON updates (deadline) WHERE deadline IS NOT NULL AND state IN ('delivered', 'pending');
CREATE INDEX batches_not_counted ON batches ("key") WHERE ended IS NULL;
CREATE INDEX audit_records_by_time ON audit_records (time, "key");
CREATE INDEX audit_records_by_principal ON audit_records (principal, time, "key");
CREATE INDEX audit_records_by_root ON audit_records (root, time, "key");
CREATE INDEX series_by_oldest_time ON series (oldest_time);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',1);
INSERT INTO "sqlite_sequence" VALUES('audit_records',6);
INSERT INTO "sqlite_sequence" VALUES('events',16);
INSERT INTO "sqlite_sequence" VALUES('series',1);
COMMIT;
