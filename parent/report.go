package parent

import (
	"cmp"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	orcav3 "github.com/cncf/xds/go/xds/data/orca/v3"
	orcaservicev3 "github.com/cncf/xds/go/xds/service/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/loadreport"
)

// pathReports is where routers subscribe to load reports, by gRPC on the port
// of everything else.
const pathReports = orcaservicev3.OpenRcaService_StreamCoreMetrics_FullMethodName

// reporter has the instance's newest load report, and streams them to routers.
type reporter struct {
	orcaservicev3.UnimplementedOpenRcaServiceServer

	models []loadreport.Model // that every report has
	newest atomic.Pointer[sample]
	ended  chan struct{}
	end    func() // ends every stream, present and future
}

// sample is a report as it is sent.
type sample struct {
	message *orcav3.OrcaLoadReport
	header  []string
	next    chan struct{} // closed when there is a newer one
}

func newReporter(first loadreport.Report) *reporter {
	r := &reporter{
		models: first.Models,
		ended:  make(chan struct{}),
	}
	r.end = sync.OnceFunc(func() { close(r.ended) })
	r.newest.Store(newSample(first))
	return r
}

func newSample(report loadreport.Report) *sample {
	return &sample{message: loadreport.Encode(report), header: []string{report.Text()}, next: make(chan struct{})}
}

// publish makes a report the newest. It never waits for who listens.
func (r *reporter) publish(report loadreport.Report) {
	close(r.newest.Swap(newSample(report)).next)
}

// header is the newest report as the header [loadreport.Header], not to be
// changed.
func (r *reporter) header() []string { return r.newest.Load().header }

// handler serves gRPC as [http.Server] hands it over, whose connections and
// mutual TLS it shares.
func (r *reporter) handler() http.Handler {
	server := grpc.NewServer()
	orcaservicev3.RegisterOpenRcaServiceServer(server, r)
	return server
}

// maxReportInterval is the longest that a listener can ask for.
const maxReportInterval = time.Minute

var errDraining = status.Error(codes.Unavailable, "the instance is draining")

// StreamCoreMetrics sends the newest report, and each newer one as soon as it is
// there, but none sooner after the last than the listener asks for. A listener
// that is slow gets the newest, not all.
func (r *reporter) StreamCoreMetrics(req *orcaservicev3.OrcaLoadReportRequest, stream orcaservicev3.OpenRcaService_StreamCoreMetricsServer) error {
	if !r.admits(stream) {
		return status.Error(codes.PermissionDenied, "load reports are for the cluster's routers")
	}
	pause := min(max(req.GetReportInterval().AsDuration(), 0), maxReportInterval)
	for {
		newest := r.newest.Load()
		if err := stream.Send(newest.message); err != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-r.ended:
			return errDraining
		}
		select {
		case <-newest.next:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-r.ended:
			return errDraining
		}
	}
}

func (r *reporter) admits(stream orcaservicev3.OpenRcaService_StreamCoreMetricsServer) bool {
	from, ok := peer.FromContext(stream.Context())
	if !ok {
		return false
	}
	info, ok := from.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return false
	}
	id, ok := identity.Peer(&info.State)
	return ok && id.Role == identity.RoleRouter
}

// reportedModels are the instance's models with their versions.
func reportedModels(config *Config) []loadreport.Model {
	var models []loadreport.Model
	for _, name := range config.Instance.Models {
		models = append(models, loadreport.Model{Name: name, Version: config.ModelVersions[name]})
	}
	slices.SortFunc(models, func(a, b loadreport.Model) int { return cmp.Compare(a.Name, b.Name) })
	return models
}
