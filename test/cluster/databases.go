// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// database is an image of manifests/samples, made of Debian packages. What it starts
// is databases/<name>.sh.
type database struct {
	name, tag string
	// user that the packages' programs expect; its id is databaseUser.
	user     string
	packages string
	// prepare is run before the packages are installed, which must not make or start
	// a database.
	prepare string
	// settings are further lines of its Dockerfile.
	settings string
}

const databaseUser = 999

var databases = []database{
	{
		name: "postgres", tag: "15", user: "postgres", packages: "postgresql-15",
		prepare:  "mkdir -p /etc/postgresql-common; echo create_main_cluster=false > /etc/postgresql-common/createcluster.conf",
		settings: "ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin\nSTOPSIGNAL SIGINT\n",
	},
	{name: "mariadb", tag: "10.11", user: "mysql", packages: "mariadb-server-core mariadb-client-core mariadb-backup"},
	{name: "redis", tag: "7", user: "redis", packages: "redis-server"},
}

// recipe turns a bare Debian into the database's file system.
func (d database) recipe() string {
	return fmt.Sprintf(`%s
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
groupadd --gid %d %s && useradd --uid %[2]d --gid %[2]d --home-dir / --shell /bin/sh %[3]s
apt-get update && apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io %s
rm -f /usr/sbin/policy-rc.d
`, d.prepare, databaseUser, d.user, d.packages)
}

// databaseImages builds the images of the samples' databases. They have one bare
// Debian in common, so each takes a moment.
func (e *env) databaseImages(ctx context.Context) (names []string, err error) {
	for _, d := range databases {
		tar, err := e.databaseTar(ctx, d)
		if err != nil {
			return nil, err
		}
		name := registry + d.name + ":" + d.tag
		dockerfile := fmt.Sprintf("COPY entrypoint.sh /usr/local/bin/entrypoint.sh\n%sUSER %d\nENTRYPOINT [\"/usr/local/bin/entrypoint.sh\"]\n", d.settings, databaseUser)
		if err := e.imported(ctx, name, tar, dockerfile, map[string]string{
			"entrypoint.sh": filepath.Join(e.here, "databases", d.name+".sh"),
		}); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

func (e *env) databaseTar(ctx context.Context, d database) (string, error) {
	key, err := hash([]string{debianSuite, d.recipe()})
	if err != nil {
		return "", err
	}
	return e.fileSystem(ctx, d.name, key, func(root string) error {
		bare, err := e.debootstrap(ctx, "bare", "", "", func(string) error { return nil })
		if err != nil {
			return err
		}
		if _, err := e.log.run(ctx, cmd{}, "tar", "-C", root, "-xf", bare); err != nil {
			return err
		}
		resolv, err := os.ReadFile("/etc/resolv.conf")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "etc/resolv.conf"), resolv, 0o644); err != nil {
			return err
		}
		return e.chroot(ctx, root, d.recipe())
	})
}
