package door_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller/door"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/standin/devca"
)

func TestDoor(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "controller/door")
}

var _ = Describe("A front door", func() {
	var ca *devca.Authority
	BeforeEach(func() {
		var err error
		ca, err = devca.New(time.Now())
		Expect(err).NotTo(HaveOccurred())
	})
	source := func(id identity.ID) *identity.Source {
		GinkgoHelper()
		dir := GinkgoT().TempDir()
		Expect(ca.WriteFiles(dir, id, time.Now())).To(Succeed())
		s, err := identity.Open(context.Background(), "dir:"+dir, "")
		Expect(err).NotTo(HaveOccurred())
		return s
	}
	// listens answers as an identity, and gives its address.
	listens := func(id identity.ID, answer http.HandlerFunc) string {
		GinkgoHelper()
		server := httptest.NewUnstartedServer(answer)
		server.EnableHTTP2 = true
		server.TLS = source(id).ServerTLS(func(peer identity.ID) bool { return peer.Role == identity.RoleController })
		server.StartTLS()
		DeferCleanup(server.Close)
		return server.Listener.Addr().String()
	}
	doors := func(at string) *door.Doors {
		GinkgoHelper()
		d := door.New(source(identity.ID{Region: "use2", Role: identity.RoleController}), map[fleet.Region]string{"use1": at})
		DeferCleanup(d.Close)
		return d
	}
	envoy := identity.ID{Region: "use1", Role: identity.RoleEnvoy}

	It("is open when the region says so, by the name and path of controllers, on one connection", func(ctx SpecContext) {
		connections := map[string]bool{}
		d := doors(listens(envoy, func(w http.ResponseWriter, r *http.Request) {
			connections[r.RemoteAddr] = true
			if r.TLS.ServerName != api.DoorName || r.URL.Path != api.PathDoor || r.Method != http.MethodGet {
				w.WriteHeader(http.StatusNotFound)
			}
		}))
		for range 3 {
			Expect(d.Ask(ctx, "use1")).To(Succeed())
		}
		Expect(connections).To(HaveLen(1))
	})

	It("is shut when nothing answers, when somebody else does, and when the region takes no requests", func(ctx SpecContext) {
		fine := func(http.ResponseWriter, *http.Request) {}
		Expect(doors("127.0.0.1:1").Ask(ctx, "use1")).To(MatchError(ContainSubstring("front door of use1")))
		Expect(doors(listens(identity.ID{Region: "use2", Role: identity.RoleEnvoy}, fine)).Ask(ctx, "use1")).To(MatchError(ContainSubstring("not admitted")))
		Expect(doors(listens(envoy, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
		})).Ask(ctx, "use1")).To(MatchError(ContainSubstring("503")))
		Expect(doors(listens(envoy, fine)).Ask(ctx, "usw2")).To(MatchError(ContainSubstring("nobody has said where it is")))
	})

	It("that hangs is asked anew on another connection", func(ctx SpecContext) {
		var asked atomic.Int32
		d := doors(listens(envoy, func(_ http.ResponseWriter, r *http.Request) {
			if asked.Add(1) == 1 {
				<-r.Context().Done()
			}
		}))
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		Expect(d.Ask(short, "use1")).NotTo(Succeed())
		Expect(d.Ask(ctx, "use1")).To(Succeed())
	})
})
