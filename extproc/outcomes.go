package extproc

import (
	"maps"
	"strings"
	"sync"
	"time"

	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/peers"
	"github.com/mrgc/mrgc/internal/routing"
)

// outcomes holds how each instance's requests ended of late. It is safe for
// concurrent use.
type outcomes struct {
	mu         sync.Mutex
	byInstance map[string]routing.Outcomes // guarded by mu
}

func newOutcomes() *outcomes { return &outcomes{byInstance: make(map[string]routing.Outcomes)} }

func (o *outcomes) add(instanceID string, failed bool, at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.byInstance[instanceID] = o.byInstance[instanceID].Add(failed, at)
}

func (o *outcomes) errorRate(instanceID string) float64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.byInstance[instanceID].ErrorRate()
}

// forget drops instances, all that is known of them.
func (o *outcomes) forget(which func(instanceID string) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.byInstance, func(id string, _ routing.Outcomes) bool { return which(id) })
}

// outcomeOf reads what the last entry of a request says of the instance where it
// was. An instance fails that answers with a status from 500, or not, or not to
// the end, or says that its engine did. It does not fail where Envoy had nobody to ask or may not ask, nor
// where the client has gone before there was an answer.
func outcomeOf(entry *accesslogdatav3.HTTPAccessLogEntry) peers.Kind {
	flags := entry.GetCommonProperties().GetResponseFlags()
	status := entry.GetResponse().GetResponseCode().GetValue()
	switch {
	case flags.GetUpstreamConnectionFailure(), flags.GetUpstreamConnectionTermination(),
		flags.GetUpstreamRemoteReset(), flags.GetUpstreamRequestTimeout(), flags.GetUpstreamProtocolError():
		return peers.Failed
	case flags.GetNoHealthyUpstream(), flags.GetUpstreamOverflow(), status == 0:
		return peers.Ended
	case status >= 500, engineOutcome(entry) == api.OutcomeFailed:
		return peers.Failed
	default:
		return peers.Served
	}
}

// headerOutcome is as Envoy writes it.
var headerOutcome = strings.ToLower(api.HeaderOutcome)

// engineOutcome is what the instance says of who has not served an answer, under its seal.
func engineOutcome(entry *accesslogdatav3.HTTPAccessLogEntry) string {
	return entry.GetResponse().GetResponseTrailers()[headerOutcome]
}
