package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/mrgc/mrgc/internal/routing"
)

// Status is the cluster as its routers see it.
type Status struct {
	Routers   []RouterStatus   `json:"routers"`
	Instances []InstanceStatus `json:"instances"`
	Envoys    []EnvoyStatus    `json:"envoys"`
}

// RouterStatus is one router.
type RouterStatus struct {
	Admin  string       `json:"admin"`
	Region string       `json:"region,omitempty"`
	Ready  bool         `json:"ready"`
	Reason string       `json:"reason,omitempty"` // why it is not ready, or does not answer
	Config ConfigStatus `json:"config"`
	Peers  []PeerStatus `json:"peers"`
}

// ConfigStatus is which configuration a router goes by.
type ConfigStatus struct {
	Version string  `json:"version"`
	AgeSec  float64 `json:"age_seconds"`
	Refused string  `json:"refused,omitempty"` // why what the file says now does not hold
}

// PeerStatus is another router, as one hears it.
type PeerStatus struct {
	Address  string  `json:"address"`
	State    string  `json:"state"`
	AgeSec   float64 `json:"age_seconds"`
	Expired  bool    `json:"expired"`
	InFlight int     `json:"in_flight"`
}

// InstanceStatus is one instance: what the store says of it, and its score as a
// router of its own region has it, else any.
type InstanceStatus struct {
	ID     string   `json:"id"`
	Region string   `json:"region"`
	Zone   string   `json:"zone,omitempty"`
	Models []string `json:"models"`
	// Versions are those of the models that are known, by name.
	Versions        map[string]string `json:"versions,omitempty"`
	Ready           bool              `json:"ready"`
	Draining        bool              `json:"draining"`
	EnclaveHealthy  bool              `json:"enclave_healthy"`
	EngineHealthy   bool              `json:"engine_healthy"`
	Reason          string            `json:"reason,omitempty"`
	Mode            string            `json:"mode,omitempty"`    // of isolation, as its enclave claims (docs/isolation.md); empty: not known
	Release         *Release          `json:"release,omitempty"` // of its enclave, as a router that follows a manifest has seen it; nil: none has
	HeartbeatAgeSec float64           `json:"heartbeat_age_seconds"`
	Weight          uint32            `json:"weight"` // that Envoy was sent; 0: it is not among the endpoints
	Score           *Score            `json:"score,omitempty"`
}

// Release is which release of the enclave an instance has shown.
type Release struct {
	Trusted bool   `json:"trusted"`
	Name    string `json:"release,omitempty"`
	Version uint64 `json:"version,omitempty"`
	Error   string `json:"error,omitempty"` // why it is not trusted
}

// Score is an instance's score and what it is made of.
type Score struct {
	Instance     string        `json:"-"`
	Score        int           `json:"score"`
	Terms        routing.Terms `json:"terms"`
	Of           string        `json:"of"` // report or heartbeat
	InFlight     int           `json:"in_flight"`
	Report       string        `json:"report"`
	ReportAgeSec float64       `json:"report_age_seconds"`
	ErrorRate    float64       `json:"error_rate"`
}

// EnvoyStatus is one Envoy, as the router has it that configures it.
type EnvoyStatus struct {
	Admin        string          `json:"admin"`
	Node         string          `json:"node"`
	Region       string          `json:"region"`
	State        string          `json:"state"` // SYNCED, STALE or REJECTED: the worst of its types'
	Reason       string          `json:"reason,omitempty"`
	ConnectedSec float64         `json:"connected_seconds"`
	AckedAgeSec  float64         `json:"acked_age_seconds,omitempty"` // since it last accepted anything
	RejectedSec  float64         `json:"rejected_age_seconds,omitempty"`
	Types        json.RawMessage `json:"types"` // as /envoys has them
}

// Ask puts together what the routers say. One that does not answer is in the
// status with the reason.
func (a *Admins) Ask(ctx context.Context) Status {
	s := Status{Routers: []RouterStatus{}, Instances: []InstanceStatus{}, Envoys: []EnvoyStatus{}}
	known := map[string]int{}
	for _, admin := range a.urls {
		router, instances, envoys, err := a.ask(ctx, admin)
		if err != nil {
			router.Ready, router.Reason = false, err.Error()
		}
		s.Routers = append(s.Routers, router)
		s.Envoys = append(s.Envoys, envoys...)
		for _, in := range instances {
			at, ok := known[in.ID]
			switch {
			case !ok:
				known[in.ID] = len(s.Instances)
				s.Instances = append(s.Instances, in)
			case s.Instances[at].Score == nil || router.Region == in.Region && s.Instances[at].Score.Report != "fresh":
				s.Instances[at] = in
			}
		}
	}
	slices.SortFunc(s.Instances, func(a, b InstanceStatus) int { return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.ID, b.ID)) })
	slices.SortStableFunc(s.Envoys, func(a, b EnvoyStatus) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Node, b.Node))
	})
	return s
}

// ask reads one router's pages.
func (a *Admins) ask(ctx context.Context, admin string) (router RouterStatus, instances []InstanceStatus, envoys []EnvoyStatus, err error) {
	router = RouterStatus{Admin: admin, Peers: []PeerStatus{}}
	status, err := a.get(ctx, admin, "/ready", &router)
	if err != nil {
		return router, nil, nil, err
	}
	router.Ready = status == http.StatusOK
	if _, err := a.get(ctx, admin, "/peers", &router); err != nil {
		return router, nil, nil, err
	}
	if _, err := a.get(ctx, admin, "/config", &router.Config); err != nil {
		return router, nil, nil, err
	}
	var scores struct {
		Region    string `json:"region"`
		Instances []struct {
			Score
			Instance string `json:"instance"`
			Mode     string `json:"mode"`
		} `json:"instances"`
	}
	if _, err := a.get(ctx, admin, "/scores", &scores); err != nil {
		return router, nil, nil, err
	}
	router.Region = scores.Region
	if instances, err = a.fleet(ctx, admin); err != nil {
		return router, nil, nil, err
	}
	for i := range instances {
		for _, score := range scores.Instances {
			if score.Instance == instances[i].ID {
				instances[i].Score, instances[i].Mode = &score.Score, score.Mode
			}
		}
	}
	releases := a.releases(ctx, admin)
	for i := range instances {
		instances[i].Release = releases[instances[i].ID]
	}
	envoys, err = a.envoys(ctx, admin)
	return router, instances, envoys, err
}

// releases are those of the instances' enclaves, by instance; of a router that follows no
// manifest there are none.
func (a *Admins) releases(ctx context.Context, admin string) map[string]*Release {
	var page struct {
		Instances []struct {
			Release
			Instance string `json:"instance"`
		} `json:"instances"`
	}
	if status, err := a.get(ctx, admin, "/releases", &page); err != nil || status != http.StatusOK {
		return nil
	}
	seen := map[string]*Release{}
	for _, in := range page.Instances {
		seen[in.Instance] = &in.Release
	}
	return seen
}

func (a *Admins) fleet(ctx context.Context, admin string) ([]InstanceStatus, error) {
	var page struct {
		Instances []struct {
			InstanceStatus
			Score json.RawMessage `json:"score"` // a number here; /scores has more
		} `json:"instances"`
	}
	if _, err := a.get(ctx, admin, "/fleet", &page); err != nil {
		return nil, err
	}
	var instances []InstanceStatus
	for _, in := range page.Instances {
		instances = append(instances, in.InstanceStatus)
	}
	return instances, nil
}

// states of an Envoy, the worst last. A type that was not asked for is not
// there yet.
var states = []string{"SYNCED", "NOT_SENT", "STALE", "REJECTED"}

func (a *Admins) envoys(ctx context.Context, admin string) ([]EnvoyStatus, error) {
	var page struct {
		Envoys []EnvoyStatus `json:"envoys"`
	}
	if _, err := a.get(ctx, admin, "/envoys", &page); err != nil {
		return nil, err
	}
	for i := range page.Envoys {
		e := &page.Envoys[i]
		e.Admin = admin
		var types []struct {
			Type        string  `json:"type"`
			State       string  `json:"state"`
			NACK        string  `json:"nack"`
			Reason      string  `json:"reason"`
			AckedAge    float64 `json:"acked_age_seconds"`
			NACKAge     float64 `json:"nack_age_seconds"`
			RejectedAge float64 `json:"rejected_age_seconds"`
		}
		if err := json.Unmarshal(e.Types, &types); err != nil && len(e.Types) > 0 {
			return nil, err
		}
		worst := 0
		for _, t := range types {
			if t.AckedAge > 0 && (e.AckedAgeSec == 0 || t.AckedAge < e.AckedAgeSec) {
				e.AckedAgeSec = t.AckedAge
			}
			if rejected := cmp.Or(t.RejectedAge, t.NACKAge); rejected > e.RejectedSec {
				e.RejectedSec = rejected
			}
			if at := slices.Index(states, t.State); at > worst {
				worst = at
				if why := cmp.Or(t.Reason, t.NACK); why != "" && e.State == "" {
					e.Reason = t.Type + ": " + why
				}
			}
		}
		if e.State == "" {
			e.State = states[worst]
			if e.State == "NOT_SENT" || len(types) == 0 {
				e.State = "STALE"
			}
		}
	}
	return page.Envoys, nil
}

// Answered says why not when no router has answered.
func (s Status) Answered() error {
	for _, r := range s.Routers {
		if r.Region != "" {
			return nil
		}
	}
	return errors.New("no router answers: is the cluster up, and is this its machine? see STATE")
}
