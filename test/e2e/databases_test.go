// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"path/filepath"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/test/scenario"
)

// database is one of manifests/samples, as its own tools see it. Its folder, its
// namespace, its Blueprint and its container have one name.
type database struct {
	name string
	// scripts for its container: what is written, how it is read, how all is lost.
	fill, read, destroy string
	// killed is the phase in which the controller is killed.
	killed string
	// password is put into a Secret for it, if the sample wants one.
	password string
}

var samples = []database{
	{
		name: "mariadb",
		fill: `mariadb -e "create database shop; use shop; create table orders (id int primary key, item char(32));
			insert into orders select seq, md5(rand()) from seq_1_to_20000"`,
		read:    `mariadb -N shop -e "select count(*), sum(crc32(concat(id, ' ', item))) from orders"`,
		killed:  "saveBase",
		destroy: `mariadb -e "drop database shop"; cd "$MARIADB_DATA" && rm -rf mysql/*.MAI && echo garbage > ibdata1`,
	},
	{
		name:     "redis",
		fill:     redisCLI + `eval "for i = 1, 20000 do redis.call('set', 'order:' .. i, redis.sha1hex(ARGV[1] .. i)) end" 0 "$(hostname) $(date)"`,
		read:     redisCLI + `eval "local s = '' for i = 1, 20000 do s = redis.sha1hex(s .. (redis.call('get', 'order:' .. i) or '')) end return redis.call('dbsize') .. ' ' .. s" 0`,
		killed:   "restoreDump",
		destroy:  redisCLI + `flushall; echo garbage > /data/dump.rdb`,
		password: rand.Text(),
	},
}

const redisCLI = `export REDISCLI_AUTH="$(cat "$REDIS_PASSWORD_FILE")"; redis-cli -e `

var _ = Describe("a database of the samples", func() {
	for _, db := range samples {
		It("is backed up, destroyed and restored, while the controller is killed: "+db.name, func(ctx SpecContext) {
			keys, err := cluster.StartS3(ctx)
			Expect(err).NotTo(HaveOccurred())
			profile := "e2e-" + db.name
			Expect(cluster.PutProfile(ctx, profile, keys, profile)).To(Succeed())
			start(ctx, db)
			DeferCleanup(func(ctx SpecContext) { Expect(cluster.DeleteNamespace(ctx, db.name)).To(Succeed()) }, NodeTimeout(short))
			inside := func(script string) string {
				GinkgoHelper()
				out, err := cluster.Exec(ctx, db.name, "db-0", db.name, script)
				Expect(err).NotTo(HaveOccurred())
				return strings.TrimSpace(out)
			}
			killed := false
			run := func(action string, parent *crv1alpha1.ActionSet) *crv1alpha1.ActionSet {
				GinkgoHelper()
				spec := scenario.Action(action, db.name, profile, db.name, "db")
				if parent != nil {
					spec = scenario.From(spec, parent)
				}
				as, err := cluster.Run(ctx, &crv1alpha1.ActionSet{
					ObjectMeta: metav1.ObjectMeta{GenerateName: db.name + "-" + action + "-"},
					Spec:       &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{spec}},
				}, killing(ctx, db.killed, &killed))
				Expect(err).NotTo(HaveOccurred())
				return as
			}

			inside(db.fill)
			rows := inside(db.read)
			Expect(rows).To(HavePrefix("20000"))
			backup := run("backup", nil)
			inside(db.destroy)
			run("restore", backup)
			Expect(cluster.Rollout(ctx, db.name, "statefulset/db")).To(Succeed())
			Expect(inside(db.read)).To(Equal(rows))
			Expect(killed).To(BeTrue(), "phase %s was over before anything could be killed", db.killed)

			if db.password != "" {
				for where, text := range visible(ctx, db.name) {
					Expect(strings.Contains(text, db.password)).To(BeFalse(), "%s shows the database's password", where)
				}
			}
		}, SpecTimeout(long))
	}
})

// start makes a database anew.
func start(ctx context.Context, db database) {
	GinkgoHelper()
	Expect(cluster.DeleteNamespace(ctx, db.name)).To(Succeed())
	if db.password != "" {
		Expect(cluster.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: db.name}})).To(Succeed())
		Expect(cluster.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: db.name, Name: db.name}, StringData: map[string]string{"password": db.password},
		})).To(Succeed())
	}
	folder := filepath.Join(cluster.Root, "manifests", "samples", db.name)
	_, err := cluster.Kubectl(ctx, "apply", "-f", filepath.Join(folder, db.name+".yaml"), "-f", filepath.Join(folder, "blueprint.yaml"))
	Expect(err).NotTo(HaveOccurred())
	Expect(cluster.Rollout(ctx, db.name, "statefulset/db")).To(Succeed())
}
