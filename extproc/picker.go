package extproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/decision"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/peers"
	"github.com/mrgc/mrgc/internal/quota"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/tenant"
)

// Config is what a [Picker] needs. Fields without a default are required.
type Config struct {
	// Region is the picker's own; its instances are preferred.
	Region fleet.Region
	// Settings are those that [Picker.SetSettings] may change.
	Settings
	// Way gives the way of a tenant's requests for a model; it does not block, and what
	// it gives does not change. Default: Region, then SpillTo, of which nobody knows how
	// far they are.
	Way func(model, tenant string) routing.Way
	// View gives the latest snapshot of the fleet, or nil while there is none. It
	// is called once for each request and must not block.
	View func() *fleet.Snapshot
	// Admit gives the rules of the tenant whose bearer token that is;
	// [tenant.ErrNoList] while nobody can be told from anybody, or another error.
	// It compares in constant time, does not block, and does not keep bearer,
	// which is wiped afterwards.
	Admit func(name string, bearer []byte, now time.Time) (*tenant.Tenant, error)
	// AdmitCertificate does the same by the name of a client's certificate, which Envoy
	// has verified; who comes with both must pass both. Default: nobody.
	AdmitCertificate func(name string, san tenant.SAN, now time.Time) (*tenant.Tenant, error)
	// Split gives how a model's requests are divided between its versions now; it
	// does not block. Default: no model's are.
	Split func(model string) routing.Split
	// Report gives an instance's last load report; it does not block. Default:
	// that of its heartbeat, which is stale.
	Report func(*fleet.Instance) routing.Report
	// Ended hears of every attempt of a request that has ended, and where that says
	// anything; it does not block. Default: nobody does.
	Ended func(Ended)
	// InFlightTimeout is after what time a request counts as ended although
	// nobody said so. Default: [DefaultInFlightTimeout].
	InFlightTimeout time.Duration

	Now     func() time.Time      // default: time.Now
	Logger  *slog.Logger          // default: none
	Metrics prometheus.Registerer // default: metrics are kept and not published
}

// DefaultInFlightTimeout is longer than any request takes that a person waits
// for. Too short, and a long request stops counting as load; too long, and a
// lost log entry counts as load.
const DefaultInFlightTimeout = 10 * time.Minute

// Picker implements Envoy's external processor and access log services. It is
// safe for concurrent use.
type Picker struct {
	extprocv3.UnimplementedExternalProcessorServer
	accesslogv3.UnimplementedAccessLogServiceServer

	region    fleet.Region // its own
	settings  atomic.Pointer[settings]
	way       func(model, tenant string) routing.Way // nil: the settings'
	view      func() *fleet.Snapshot
	admit     func(string, []byte, time.Time) (*tenant.Tenant, error)
	certified func(string, tenant.SAN, time.Time) (*tenant.Tenant, error)
	now       func() time.Time
	log       *slog.Logger
	metrics   *metrics
	split     func(string) routing.Split
	report    func(*fleet.Instance) routing.Report // nil: heartbeats
	ended     func(Ended)
	inFlight  *InFlight
	outcomes  *outcomes
	homes     *homes
	saturated saturated
	limiter   *quota.Limiter
	recent    quota.Recent
	shared    shared
	book      decision.Book

	latest atomic.Pointer[index] // of the last snapshot seen; nil before the first
}

// New makes a picker and registers its metrics.
func New(cfg Config) (*Picker, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("extproc: %w", err)
	}
	if cfg.InFlightTimeout == 0 {
		cfg.InFlightTimeout = DefaultInFlightTimeout
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.AdmitCertificate == nil {
		cfg.AdmitCertificate = func(string, tenant.SAN, time.Time) (*tenant.Tenant, error) { return nil, tenant.ErrUnknown }
	}
	if cfg.Split == nil {
		cfg.Split = func(string) routing.Split { return nil }
	}
	if cfg.Ended == nil {
		cfg.Ended = func(Ended) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Picker{
		region:    cfg.Region,
		way:       cfg.Way,
		certified: cfg.AdmitCertificate,
		view:      cfg.View,
		admit:     cfg.Admit,
		now:       cfg.Now,
		log:       cfg.Logger,
		split:     cfg.Split,
		report:    cfg.Report,
		ended:     cfg.Ended,
		inFlight:  NewInFlight(cfg.InFlightTimeout),
		outcomes:  newOutcomes(),
		homes:     newHomes(),
		limiter:   quota.NewLimiter(),
	}
	p.settings.Store(newSettings(cfg.Region, &cfg.Settings, nil))
	p.shared.epoch = peers.Epoch{Began: cfg.Now().UnixNano(), ID: rand.Uint64()} //nolint:gosec // tells processes apart; no secret
	m, err := newMetrics(cfg.Metrics, cfg.Region, p.figures)
	if err != nil {
		return nil, fmt.Errorf("extproc: register metrics: %w", err)
	}
	p.metrics = m
	return p, nil
}

func (cfg *Config) check() error {
	switch {
	case cfg.Region == "":
		return errors.New("config: Region is empty")
	case cfg.View == nil:
		return errors.New("config: View is nil")
	case cfg.Admit == nil:
		return errors.New("config: Admit is nil: a picker that lets everyone in is not allowed")
	case cfg.InFlightTimeout < 0:
		return fmt.Errorf("config: InFlightTimeout is %v, must not be negative", cfg.InFlightTimeout)
	}
	return cfg.Validate(cfg.Region)
}

// Process answers one request of Envoy's: a stream is one HTTP request. Only
// its headers are asked for; any other message, which a differently configured
// filter sends, is answered with leave to go on.
func (p *Picker) Process(stream grpc.BidiStreamingServer[extprocv3.ProcessingRequest, extprocv3.ProcessingResponse]) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err // gRPC's own: Envoy has gone, with or without our answer
		}
		headers := message.GetRequestHeaders()
		if headers == nil {
			if answer := proceed(message); answer != nil {
				if err := stream.Send(answer); err != nil {
					return err
				}
			}
			continue
		}
		if err := stream.Context().Err(); err != nil {
			return err // it waited for too long: Envoy went by weight, and nothing is to be counted
		}
		answer, envoyID := p.answer(stream.Context(), headers)
		if err := stream.Send(answer); err != nil {
			p.inFlight.Done(envoyID) // Envoy never heard of the pick
			return err
		}
	}
}

// answer decides over one request. The id is that under which the request is
// now in flight, empty when it is not.
func (p *Picker) answer(ctx context.Context, headers *extprocv3.HttpHeaders) (*extprocv3.ProcessingResponse, string) {
	start := p.now()
	req := readHeaders(headers.GetHeaders().GetHeaders())
	decision, refusal := p.decide(&req, start)
	wipe(headers.GetHeaders().GetHeaders())
	clear(req.bearer)
	p.metrics.duration.Observe(p.now().Sub(start).Seconds())

	if refusal != nil {
		p.noteRefusal(&req, refusal, start)
		p.metrics.picks.WithLabelValues(refusal.Code).Inc()
		p.log.LogAttrs(ctx, slog.LevelDebug, "request refused",
			slog.String("code", refusal.Code), slog.String("param", refusal.Param), slog.String("request_id", req.envoyID))
		return refuse(refusal), ""
	}
	p.metrics.picks.WithLabelValues(string(decision.Reason)).Inc()
	if decision.Gate != routing.GateNone {
		p.metrics.affinity.WithLabelValues(string(decision.Gate)).Inc()
	}
	first := decision.Instances[0].ID
	if req.affinity != "" && p.homes.set(req.affinity, first) {
		p.shared.tellHome(req.affinity, first)
	}
	uncached := routing.UncachedTokens(req.size.Prompt, decision.Gate == routing.GateHome)
	p.inFlight.Add(req.envoyID, first, Flight{Tokens: uncached, Claim: req.claim(), Taken: req.taken}, start)
	p.shared.changed.raise()
	return steer(decision.Destination(), uncached), req.envoyID
}

// decide checks a request, cheapest and least revealing first, and picks.
func (p *Picker) decide(req *request, now time.Time) (routing.Decision, *api.Error) {
	var none routing.Decision
	rules, refusal := p.rulesOf(req, now)
	if refusal != nil {
		return none, refusal
	}
	req.weight = rules.Share()
	ix := p.index()
	switch {
	case ix == nil:
		return none, errNotReady()
	case !ix.serves(req.model):
		return none, errModelNotFound(req.model)
	}
	settings := p.settings.Load()
	way := p.allowed(req, rules, settings)
	pick := routing.Request{
		ID:           req.id,
		Model:        req.model,
		Recipients:   req.recipients,
		Regions:      way.Regions,
		Detours:      way.Detours,
		PromptTokens: req.size.Prompt,
		Split:        p.split(req.model),
		Conversation: req.affinity,
	}
	var buf [8]routing.Candidate // few requests have more recipients: no allocation
	candidates := p.candidates(buf[:0], ix, req.recipients, now)
	if refusal := p.limit(req, rules, pick, candidates, now); refusal != nil {
		return none, refusal
	}
	if model := settings.models[req.model]; model != nil {
		pick.Policy, pick.Sequence = model.policy, model.requests.Add(1)
	}
	if req.affinity != "" {
		pick.Home = p.homes.of(req.affinity, candidates)
	}
	decision := routing.Pick(pick, candidates)
	p.saturated.note(candidates)
	switch {
	case len(decision.Instances) > 0:
	case decision.Reason == routing.ReasonNoRecipientReady && !p.offers(&pick):
		refusal = errNotReady()
	default:
		// Keys of nobody, of another model's instances, of a version that gets no requests, or
		// of instances that take none, where others do: drained, say, or being washed.
		refusal = errStaleRecipients()
	}
	if refusal != nil {
		p.limiter.GiveBack(req.taken, now)
	}
	p.noteDecision(req, &pick, candidates, decision, refusal, ix, settings.version, now)
	return decision, refusal
}

// rulesOf gives the rules of the tenant that a request is from, if it may make it
// here.
func (p *Picker) rulesOf(req *request, now time.Time) (*tenant.Tenant, *api.Error) {
	switch {
	case !req.sealed:
		return nil, errNotSealed()
	case req.fault != "":
		return nil, errInvalidHeader(req.fault)
	}
	rules, err := p.identify(req, now)
	switch {
	case errors.Is(err, tenant.ErrNoList):
		return nil, errNoTenants()
	case err != nil:
		return nil, errInvalidAPIKey()
	case !rules.Models.Allow(req.model):
		return nil, errModelNotFound(req.model)
	case !rules.Regions.Allow(string(p.region)):
		return nil, errElsewhere(p.region)
	}
	return rules, nil
}

// identify gives the rules of the tenant that a request is from, by its token, or
// its client's certificate, or both.
func (p *Picker) identify(req *request, now time.Time) (rules *tenant.Tenant, err error) {
	if req.hides || len(req.bearer) == 0 && req.san == "" {
		return nil, tenant.ErrUnknown
	}
	if req.san != "" {
		if rules, err = p.certified(req.tenant, tenant.SAN(req.san), now); err != nil {
			return nil, err
		}
	}
	if len(req.bearer) > 0 {
		return p.admit(req.tenant, req.bearer, now)
	}
	return rules, nil
}

// allowed is a request's way, as far as its tenant's data may be on it.
func (p *Picker) allowed(req *request, rules *tenant.Tenant, settings *settings) routing.Way {
	way := settings.way
	if p.way != nil {
		way = p.way(req.model, req.tenant)
	}
	if rules.Regions == nil {
		return way
	}
	return way.Within(func(region fleet.Region) bool { return rules.Regions.Allow(string(region)) })
}

// offers says whether a client that asked for recipients now would be offered one, to
// seal the same request to.
func (p *Picker) offers(req *routing.Request) bool {
	offer := routing.Offer{Model: req.Model, N: 1, Regions: req.Regions, Detours: req.Detours, Split: req.Split}
	return len(routing.Candidates(offer, p.Candidates())) > 0
}

// InFlight is how many requests this picker has sent to an instance and not
// seen end.
func (p *Picker) InFlight(instanceID string) int {
	p.inFlight.Expire(p.now())
	return p.inFlight.On(instanceID).Requests
}

// Candidates is every instance of the fleet as the picker sees it now, in order
// of ID: for [routing.Candidates], and for people. It is the caller's.
func (p *Picker) Candidates() []routing.Candidate {
	ix, now := p.index(), p.now()
	if ix == nil {
		return nil
	}
	p.inFlight.Expire(now)
	all := make([]routing.Candidate, len(ix.snapshot.Instances))
	for i, in := range ix.snapshot.Instances {
		all[i] = p.candidate(ix, in, now)
	}
	return all
}

// figures has those of every instance of the fleet, the idle included, and of
// those that have left it with requests in flight.
func (p *Picker) figures() map[string]figures {
	now := p.now()
	p.inFlight.Expire(now)
	all := make(map[string]figures)
	for id, work := range p.inFlight.All() {
		all[id] = figures{work: work}
	}
	for _, c := range p.Candidates() {
		id := c.Instance.ID
		all[id] = figures{work: p.inFlight.On(id), elsewhere: p.shared.views.On(id, now, now), errorRate: c.ErrorRate}
	}
	return all
}
