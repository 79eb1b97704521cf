package decision

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// Limits of a trace.
const (
	MaxLineBytes = 256 << 10
	MaxRecords   = 1 << 20

	maxCandidates = 64 // as many as a request has recipients
	maxRegions    = 16
	maxVersions   = 8   // of a model
	maxNames      = 256 // models or keys of an instance
	maxTextBytes  = 256
)

// formatVersion is that of a line.
const formatVersion = 1

// line is a record as a trace has it. Durations are in nanoseconds, so that
// nothing is rounded.
type line struct {
	Version    int          `json:"v"`
	At         time.Time    `json:"at"`
	EnvoyID    string       `json:"envoy_request_id,omitempty"`
	Tenant     string       `json:"tenant,omitempty"`
	Config     string       `json:"config,omitempty"`
	FleetAt    time.Time    `json:"fleet_read_at,omitzero"`
	Request    lineRequest  `json:"request"`
	Candidates []lineOption `json:"candidates,omitempty"`
	Decision   lineDecision `json:"decision,omitzero"`
	Refusal    *Refusal     `json:"refusal,omitempty"`
	Outcome    *lineOutcome `json:"outcome,omitempty"`
}

type lineRequest struct {
	ID           string          `json:"id,omitempty"`
	Model        string          `json:"model,omitempty"`
	Recipients   []string        `json:"recipients,omitempty"`
	Regions      []fleet.Region  `json:"regions,omitempty"`
	Detours      []time.Duration `json:"detours_ns,omitempty"` // of the regions
	Split        []lineVersion   `json:"split,omitempty"`
	Conversation string          `json:"conversation,omitempty"` // its opaque key
	Policy       string          `json:"policy"`
	Home         string          `json:"home,omitempty"`
	PromptTokens int             `json:"prompt_tokens,omitempty"`
	Sequence     uint64          `json:"sequence,omitempty"`
}

type lineVersion struct {
	Name   string `json:"name"`
	Weight int    `json:"weight"` // per mille
}

type lineOption struct {
	Instance       lineInstance  `json:"instance"`
	Ready          bool          `json:"ready"`
	SinceReady     time.Duration `json:"since_ready_ns,omitempty"`
	InFlight       int           `json:"in_flight"`
	InFlightTokens int           `json:"in_flight_tokens"`
	SentRequests   int           `json:"sent_requests,omitempty"`
	SentTokens     int           `json:"sent_tokens,omitempty"`
	Saturated      bool          `json:"was_saturated,omitempty"`
	ErrorRate      float64       `json:"error_rate"`
	Report         lineReport    `json:"report"`
}

type lineInstance struct {
	ID          string            `json:"id"`
	Region      fleet.Region      `json:"region"`
	Zone        string            `json:"zone,omitempty"`
	Models      []string          `json:"models"`
	Versions    map[string]string `json:"versions,omitempty"`
	Keys        []string          `json:"keys"`
	Draining    bool              `json:"draining,omitempty"`
	Enclave     bool              `json:"enclave_healthy"`
	Engine      bool              `json:"engine_healthy"`
	Reason      string            `json:"reason,omitempty"`
	HeartbeatAt time.Time         `json:"heartbeat_at,omitzero"`
	Load        lineLoad          `json:"load"`
}

type lineLoad struct {
	Running  int           `json:"running"`
	Queued   int           `json:"queued"`
	Slots    int           `json:"slots"`
	Latency  time.Duration `json:"latency_ns,omitempty"`
	Requests int64         `json:"requests,omitempty"`
}

type lineReport struct {
	Age          string        `json:"age"` // fresh, stale or missing
	Since        time.Duration `json:"since_ns,omitempty"`
	Load         lineLoad      `json:"load"`
	UnreadTokens int           `json:"unread_tokens,omitempty"`
	ReadRate     float64       `json:"read_tokens_per_second,omitempty"`
	Duration     time.Duration `json:"request_ns,omitempty"`
}

type lineDecision struct {
	Order   []string       `json:"order,omitempty"` // ids, best first
	Reason  routing.Reason `json:"reason"`
	Gate    routing.Gate   `json:"gate,omitempty"`
	Version string         `json:"version,omitempty"`
}

type lineOutcome struct {
	Instance string        `json:"instance,omitempty"`
	Attempts int           `json:"attempts,omitempty"`
	End      End           `json:"end,omitempty"`
	After    time.Duration `json:"after_ns,omitempty"`
	Wait     time.Duration `json:"wait_ns,omitempty"`
}

// Write appends records to a trace.
func Write(w io.Writer, records ...Record) error {
	encoder := json.NewEncoder(w)
	for i := range records {
		if err := encoder.Encode(lineOf(&records[i])); err != nil {
			return fmt.Errorf("trace: %w", err)
		}
	}
	return nil
}

func lineOf(r *Record) line {
	l := line{
		Version: formatVersion, At: r.At, EnvoyID: r.EnvoyID, Tenant: r.Tenant, Config: r.Config, FleetAt: r.FleetAt,
		Request: lineRequest{
			ID: r.Request.ID, Model: r.Request.Model, Recipients: r.Request.Recipients, Regions: r.Request.Regions, Detours: r.Request.Detours,
			Conversation: r.Request.Conversation, Policy: r.Request.Policy.String(), Home: r.Request.Home, PromptTokens: r.Request.PromptTokens, Sequence: r.Request.Sequence,
		},
		Decision: lineDecision{Order: idsOf(r.Decision), Reason: r.Decision.Reason, Gate: r.Decision.Gate, Version: r.Decision.Version},
	}
	for _, v := range r.Request.Split {
		l.Request.Split = append(l.Request.Split, lineVersion(v))
	}
	for i := range r.Candidates {
		l.Candidates = append(l.Candidates, optionOf(&r.Candidates[i]))
	}
	if r.Refusal != (Refusal{}) {
		l.Refusal = &r.Refusal
	}
	if r.Outcome != (Outcome{}) {
		o := lineOutcome(r.Outcome)
		l.Outcome = &o
	}
	return l
}

func optionOf(c *routing.Candidate) lineOption {
	in := c.Instance
	return lineOption{
		Instance: lineInstance{
			ID: in.ID, Region: in.Region, Zone: in.Zone, Models: in.Models, Versions: in.Versions, Keys: in.KeyIDs, Draining: in.Draining,
			Enclave: in.Health.Enclave, Engine: in.Health.Engine, Reason: in.Health.Reason,
			HeartbeatAt: in.HeartbeatAt, Load: lineLoad(in.Load),
		},
		Ready: c.Ready, SinceReady: c.SinceReady,
		InFlight: c.InFlight, InFlightTokens: c.InFlightTokens, SentRequests: c.SentRequests, SentTokens: c.SentTokens, Saturated: c.Saturated, ErrorRate: finite(c.ErrorRate),
		Report: lineReport{
			Age: c.Report.Age.String(), Since: c.Report.Since, Load: lineLoad(c.Report.Load), UnreadTokens: c.Report.UnreadTokens,
			ReadRate: finite(c.Report.ReadTokensPerSecond), Duration: c.Report.RequestDuration,
		},
	}
}

// finite keeps what JSON cannot say out of a trace; load reports are refused that
// have it.
func finite(f float64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}

func idsOf(d routing.Decision) []string {
	var ids []string
	for _, in := range d.Instances {
		ids = append(ids, in.ID)
	}
	return ids
}

// Reader reads a trace, which anybody may have written: an unknown field, a
// value out of bounds or a line that is too long is an error that names the line.
type Reader struct {
	scanner *bufio.Scanner
	line    int
	err     error
}

// NewReader reads from r.
func NewReader(r io.Reader) *Reader {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(make([]byte, 0, 64<<10), MaxLineBytes)
	return &Reader{scanner: scanner}
}

// Next gives the next record, or io.EOF. After an error it gives that error
// again.
func (r *Reader) Next() (Record, error) {
	if r.err != nil {
		return Record{}, r.err
	}
	record, err := r.next()
	if err != nil {
		if !errors.Is(err, io.EOF) {
			err = fmt.Errorf("trace: line %d: %w", r.line, err)
		}
		r.err = err
	}
	return record, err
}

func (r *Reader) next() (Record, error) {
	r.line++
	if !r.scanner.Scan() {
		if err := r.scanner.Err(); errors.Is(err, bufio.ErrTooLong) {
			return Record{}, fmt.Errorf("longer than %d bytes", MaxLineBytes)
		} else if err != nil {
			return Record{}, err
		}
		return Record{}, io.EOF
	}
	if r.line > MaxRecords {
		return Record{}, fmt.Errorf("more than %d records", MaxRecords)
	}
	decoder := json.NewDecoder(bytes.NewReader(r.scanner.Bytes()))
	decoder.DisallowUnknownFields()
	var l line
	if err := decoder.Decode(&l); err != nil {
		return Record{}, fmt.Errorf("not a decision: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Record{}, errors.New("something follows the decision")
	}
	return l.record()
}
