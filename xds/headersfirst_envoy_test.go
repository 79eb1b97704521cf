package xds_test

import (
	"bytes"
	"io"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
)

var _ = Describe("A request whose headers go ahead of its body", func() {
	It("has been picked, and is at its instance, before the body is there", func(ctx SpecContext) {
		r := startRegion(nil, "use1", "use1").serving()
		r.router.picker.picks(addresses(r.parents[1]))
		arrived, content := make(chan int64, 1), make(chan []byte, 1)
		r.parents[1].Handle(func(w http.ResponseWriter, req *http.Request) {
			arrived <- req.ContentLength
			all, _ := io.ReadAll(req.Body)
			content <- all
			w.WriteHeader(http.StatusOK)
		})
		picks := r.router.picker.count()

		body := bytes.Repeat([]byte("sealed"), 1000)
		sent, writer := io.Pipe()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+api.PathSealed, sent)
		Expect(err).NotTo(HaveOccurred())
		req.ContentLength = int64(len(body))
		for name, value := range map[string]string{
			"Content-Type": api.ContentTypeSealedRequest, api.HeaderModel: model, api.HeaderTenant: "acme",
			api.HeaderRequestID: "0123456789abcdef0123456789abcdef", "Authorization": "Bearer " + token,
		} {
			req.Header.Set(name, value)
		}
		answered := make(chan answer, 1)
		go func() {
			defer GinkgoRecover()
			answered <- r.do(req)
		}()
		Eventually(arrived).WithTimeout(5 * time.Second).Should(Receive(Equal(int64(len(body)))))
		Expect(r.router.picker.count() - picks).To(Equal(1))
		Expect(content).NotTo(Receive())

		_, err = writer.Write(body)
		Expect(err).NotTo(HaveOccurred())
		Expect(writer.Close()).To(Succeed())
		Eventually(content).WithTimeout(5 * time.Second).Should(Receive(Equal(body)))
		var got answer
		Eventually(answered).WithTimeout(5 * time.Second).Should(Receive(&got))
		Expect(got.status).To(Equal(http.StatusOK))
	}, SpecTimeout(time.Minute))
})
