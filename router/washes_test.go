package router_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
)

// order posts an order of a wash to the admin, and gives its status, with the wash's id or
// the error's code.
func (r *running) order(ctx context.Context, instance, contentType string) (status int, said string) {
	GinkgoHelper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.admin+"/instances/"+instance+"/wash", strings.NewReader("{}"))
	Expect(err).NotTo(HaveOccurred())
	req.Header.Set("Content-Type", contentType)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	Expect(err).NotTo(HaveOccurred())
	defer resp.Body.Close()
	body := make([]byte, 4<<10)
	n, _ := resp.Body.Read(body)
	if resp.StatusCode == http.StatusAccepted {
		var ordered struct{ Instance, Wash string }
		Expect(json.Unmarshal(body[:n], &ordered)).To(Succeed())
		Expect(ordered.Instance).To(Equal(instance))
		return resp.StatusCode, ordered.Wash
	}
	return resp.StatusCode, api.ParseError(resp.StatusCode, body[:n]).Code
}

var _ = Describe("An order of a wash", func() {
	It("goes to the instance's parent and nobody else", func(ctx SpecContext) {
		r := newRouter()
		good, other := startParent(r.ca, "use1", "use1-0"), startParent(r.ca, "use1", "use1-1")
		r.start()
		r.publish(good, other)
		Eventually(ctx, func() int { status, _ := r.order(ctx, "use1-0", "application/json"); return status }).Should(Equal(http.StatusAccepted))
		Expect(good.ordered.Load()).To(BeEquivalentTo(1))
		_, wash := r.order(ctx, "use1-0", "application/json")
		Expect(wash).To(Equal("use1-0/2026-03-14T09:26:53.589000Z"))
		Expect(other.ordered.Load()).To(BeZero())
	}, NodeTimeout(20*time.Second))

	It("is not said to have been taken when the parent does not say which wash it is", func(ctx SpecContext) {
		r := newRouter()
		p := startParent(r.ca, "use1", "use1-0")
		r.start()
		r.publish(p)
		for _, says := range []string{"", `{}`, `{"wash":"use1-1/2026-03-14T09:26:53.589000Z"}`, `{"wash":1}`} {
			p.says.Store(says)
			Eventually(ctx, func() string { _, code := r.order(ctx, "use1-0", "application/json"); return code }).Should(Equal("wash_not_known"), says)
		}
	}, NodeTimeout(20*time.Second))

	It("is refused, and says why", func(ctx SpecContext) {
		r := newRouter()
		p := startParent(r.ca, "use1", "use1-0")
		impostor := startParent(r.ca, "use1", "use1-1")
		impostor.instance.ID = "use1-2"
		r.start()
		r.publish(p, impostor)
		Eventually(ctx, func() int { status, _ := r.order(ctx, "use1-0", "application/json"); return status }).Should(Equal(http.StatusAccepted))
		p.refuses.Store(true)
		for _, c := range []struct {
			instance, contentType, code string
			status                      int
		}{
			{"use1-0", "text/plain", "invalid_request", http.StatusUnsupportedMediaType}, // what a page of another site can send
			{"use1-9", "application/json", "not_found", http.StatusNotFound},
			{"use1-2", "application/json", "instance_unreachable", http.StatusBadGateway},
			{"use1-0", "application/json", "no_washes", http.StatusNotFound}, // its parent's own word
		} {
			status, code := r.order(ctx, c.instance, c.contentType)
			Expect(status).To(Equal(c.status))
			Expect(code).To(Equal(c.code))
		}
		Expect(p.ordered.Load()).To(BeEquivalentTo(1))
	}, NodeTimeout(20*time.Second))
})
